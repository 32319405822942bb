#!/usr/bin/env python3
"""Makes tests/golden/text/: tokenizers and ids by Hugging Face's `tokenizers` (made with 0.23.3).

    pip install tokenizers && python3 tests/golden/make_tokenizer_goldens.py

  corpus.txt            a small text with tricky places
  bpe.json              byte-level BPE that BpeTrainer learns from it
  bpe_pairs.json        a smaller one made otherwise: <|endoftext|> last, merges as pairs, several added tokens
  char.json             one token a character
  cases.json            {tokenizer: [{"text": …, "ids": […]}, …]}
"""
import json
import os

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "text")
END = "<|endoftext|>"

WORDS = ["the", "king", "of", "Israel", "went", "forth", "and", "said", "unto", "them", "I'll", "we've", "they're", "don't",
         "isn't", "he'd", "I'm", "Moses'", "begat", "sunny", "day", "today", "1999", "12", "3.14", "naïve", "café", "Straße",
         "Ελλάδα", "привет", "日本語", "🙂", "👩‍👩‍👧", "e\u0301", "ab", "abab", "aaaa", "--", "...", "!?"]


def corpus():
    state, out = 12345, []
    for i in range(1500):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(WORDS[min((state >> 33) % len(WORDS), (state >> 45) % len(WORDS))])
        out.append([" ", " ", " ", " ", ", ", "\n", "  ", "\t", "\n\n", ". "][(state >> 20) % 10])
    return "".join(out)


CASES = [
    "", " ", "  ", "a", " a", "a ", "Hello world", "Hello  world", "Hello   world  ", "\n", "\n\n\nx", "x\n \n\ty", " \t x",
    "I'll we've they're don't isn't he'd I'm Moses' 's 'S 'LL ''s 're", "it's'll", "'", "''", "x'", "'tis",
    "123 4567 89a b12 3.14159 ½ ² Ⅷ ٣ 一二", "naïve café Straße ΕΛΛΆΔΑ привет 日本語テキスト", "e\u0301a\u0308o\u0302 \u0301x",
    "🙂🙂 👩‍👩‍👧‍👦 🇩🇪 👍🏽", "a\u00a0b\u2003c\u3000d\u200be\u2028f\u0085g\u1680h\u180ei", "\r\nwindows\r\n", "tab\tseparated\tvalues",
    "don’t “quote” — dash…", "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> ", "<|endoftext|><|endoftext|>", "<|endoftext|",
    "<|endoftext|>\n\nthe king", "<<|endoftext|>>", "\x00\x01\x7f\x80\xff", "\ufeffBOM", "\U0010ffff\ue000\ufffd", "aaaaaaaaaaaa", "ababababa",
    "a" * 130, "the" * 60, " " * 100 + "x", "x" + " " * 70, "ab" * 90 + "!" * 77, "snake_case_name __init__ C++ a+b=c #tag @user",
    "the king of Israel went forth and said unto them", "ﬁ ﬀ ǅ ʰ ª º ৳ ⅓ ① ㊿", "हिन्दी தமிழ் ไทย עברית العربية 한국어 한국어",
    "x\u0301\u0302\u0303 \u20dd1\u20de", "\u2029a\u2029 b", "  \n  \n  a", "a\n\n b", "\u00a0\u00a0a", " \u00a0a", "1 2  3   4", "!  !",
]


def byte_level(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def cases(tokenizer, texts):
    return [{"text": t, "ids": tokenizer.encode(t, add_special_tokens=False).ids} for t in texts]


def main():
    os.makedirs(HERE, exist_ok=True)
    text = corpus()
    with open(os.path.join(HERE, "corpus.txt"), "w", encoding="utf-8", newline="") as f:
        f.write(text)

    bpe = byte_level(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(vocab_size=400, min_frequency=2, special_tokens=[END], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator([text], trainer)
    bpe.save(os.path.join(HERE, "bpe.json"))

    # As GPT-2's own file has it: bytes first, <|endoftext|> last; and tokens that overlap each other.
    learnt = json.loads(bpe.to_str())["model"]
    order = [t for t in learnt["vocab"] if t != END][:300]
    keep = set(order)
    pairs = [m if isinstance(m, list) else m.split(" ") for m in learnt["merges"]]
    pairs = [m for m in pairs if "".join(m) in keep and m[0] in keep and m[1] in keep]
    other = byte_level(Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(order)}, merges=[tuple(m) for m in pairs])))
    other.add_special_tokens(["<|end|>", END, "<|endoftext|>!"])
    other.add_tokens(["king of", " the  ", "x<|en"])
    other.save(os.path.join(HERE, "bpe_pairs.json"))

    characters = sorted(set(text))
    char = Tokenizer(models.WordLevel(vocab={c: i for i, c in enumerate(characters)}, unk_token="<unk>"))
    char.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    char.decoder = decoders.Fuse()
    char.save(os.path.join(HERE, "char.json"))

    known = set(characters)
    with open(os.path.join(HERE, "cases.json"), "w", encoding="utf-8") as f:
        json.dump({"bpe": cases(bpe, CASES + [text[:3000]]),
                   "bpe_pairs": cases(other, CASES + ["the king of the  king of<|end|><|endoftext|>!x", "x<|end|> x<|en <x<|endoftext|>", " the  <|endoftext|>! the  the"]),
                   "char": cases(char, ["".join(c for c in t if c in known) for t in CASES] + [text[:300]])},
                  f, ensure_ascii=True, separators=(",", ":"))


if __name__ == "__main__":
    main()
