#include "text/tokenizer.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "testing/status.h"
#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "text/unicode.h"

namespace millrace::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

std::string Golden(const std::string& name) {
  std::ifstream stream(absl::StrCat(MILLRACE_SOURCE_DIR, "/tests/golden/text/", name), std::ios::binary);
  EXPECT_TRUE(stream.good()) << name;
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

ForEachText Once(std::string text) {
  return [text = std::move(text)](const auto& each) { return each(text); };
}

std::unique_ptr<Tokenizer> Must(absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer) {
  EXPECT_OK(tokenizer);
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::vector<std::string> WordsOf(absl::string_view text) {
  std::vector<std::string> words;
  while (!text.empty()) {
    const size_t size = FirstWord(text);
    words.emplace_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  return words;
}

// Mixed pieces of text that go wrong easily, and raw bytes.
std::string RandomText(std::mt19937* random, bool valid) {
  static const std::vector<std::string> pieces = {"the",
                                                  " king",
                                                  "'s",
                                                  "'",
                                                  " ",
                                                  "  ",
                                                  "\n",
                                                  "\t",
                                                  "é",
                                                  "e\u0301",
                                                  "🙂",
                                                  "日本",
                                                  "12",
                                                  "½",
                                                  "\u00a0",
                                                  "\u3000",
                                                  "<|endoftext|>",
                                                  "<|endoftext",
                                                  "!?",
                                                  "ab",
                                                  "abab",
                                                  "\x00"};
  std::string text;
  const int count = std::uniform_int_distribution<int>(0, 40)(*random);
  for (int i = 0; i < count; ++i) {
    if (!valid && (*random)() % 3 == 0) {
      text.push_back(static_cast<char>((*random)()));
    } else {
      text += pieces[(*random)() % pieces.size()];
    }
  }
  return text;
}

class HuggingFaceGolden : public ::testing::TestWithParam<std::string> {};

TEST(TokenizerConfig, KeepsTokenizerJsonWhereItWouldBeReplaced) {
  const auto tokenizer = Must(ParseTokenizer(Golden("bpe.json"), "bpe.json"));
  const Json llama = Json::parse(tokenizer->ConfigJson("llama")), qwen2 = Json::parse(tokenizer->ConfigJson("qwen2"));
  EXPECT_EQ(llama["tokenizer_class"], "PreTrainedTokenizerFast");
  EXPECT_EQ(llama["eos_token"], "<|endoftext|>");
  EXPECT_FALSE(llama.contains("auto_map"));
  EXPECT_TRUE(qwen2["auto_map"]["AutoTokenizer"].is_array());
}

TEST(TokenizerConfig, NamesTheTokensOfAnEncodersSequences) {
  const auto tokenizer = Must(TrainCharacters([](const auto& each) { return each("abc"); }, {"[PAD]", "[CLS]", "[MASK]"}));
  const Json bert = Json::parse(tokenizer->ConfigJson("bert")), gpt2 = Json::parse(tokenizer->ConfigJson("gpt2"));
  EXPECT_EQ(bert["cls_token"], "[CLS]");
  EXPECT_EQ(bert["pad_token"], "[PAD]");
  EXPECT_EQ(bert["mask_token"], "[MASK]");
  EXPECT_FALSE(bert.contains("sep_token"));  // it has none
  EXPECT_FALSE(gpt2.contains("cls_token"));
}

TEST_P(HuggingFaceGolden, SameIdsBothWaysAndAfterBeingWrittenByUs) {
  const auto theirs = Must(ParseTokenizer(Golden(GetParam() + ".json"), GetParam()));
  ASSERT_NE(theirs, nullptr);
  const auto ours = Must(ParseTokenizer(theirs->ToJson(), "ours"));
  ASSERT_NE(ours, nullptr);
  const Json cases = Json::parse(Golden("cases.json"))[GetParam()];
  ASSERT_GT(cases.size(), 50u);
  for (const Json& entry : cases) {
    const std::string text = entry["text"];
    const std::vector<uint32_t> ids = entry["ids"];
    for (const Tokenizer* tokenizer : {theirs.get(), ours.get()}) {
      const auto encoded = tokenizer->Encode(text);
      ASSERT_OK(encoded);
      EXPECT_EQ(*encoded, ids) << entry["text"].dump();
      EXPECT_EQ(tokenizer->Decode(ids), text);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(All, HuggingFaceGolden, ::testing::Values("bpe", "bpe_pairs", "char"));

TEST(TrainBpe, LearnsWhatHuggingFacesTrainerLearns) {
  const auto tokenizer = Must(TrainBpe({.vocab_size = 400, .min_frequency = 2}, Once(Golden("corpus.txt"))));
  ASSERT_NE(tokenizer, nullptr);
  const Json ours = Json::parse(tokenizer->ToJson())["model"], theirs = Json::parse(Golden("bpe.json"))["model"];
  EXPECT_EQ(ours["vocab"], theirs["vocab"]);
  std::vector<std::string> merges;
  for (const Json& merge : theirs["merges"])
    merges.push_back(absl::StrCat(merge[0].get<std::string>(), " ", merge[1].get<std::string>()));
  EXPECT_EQ(ours["merges"].get<std::vector<std::string>>(), merges);
}

// Sennrich's algorithm with nothing kept between merges.
std::vector<std::pair<uint32_t, uint32_t>> SlowMerges(const std::string& text, size_t count) {
  const auto base = Must(TrainBpe({.vocab_size = 257}, Once(text)));
  std::vector<std::vector<uint32_t>> words;
  for (const std::string& word : WordsOf(text)) {
    words.emplace_back();
    for (const char byte : word) words.back().push_back(base->Encode(std::string(1, byte))->at(0));
  }
  std::vector<std::string> tokens;
  for (uint32_t id = 0; id < 257; ++id) tokens.push_back(base->TokenBytes(id));
  std::vector<std::pair<uint32_t, uint32_t>> merges;
  while (merges.size() < count) {
    std::map<std::pair<uint32_t, uint32_t>, int> counts;
    for (const auto& word : words) {
      for (size_t i = 0; i + 1 < word.size(); ++i) ++counts[{word[i], word[i + 1]}];
    }
    std::pair<uint32_t, uint32_t> best;
    int most = 0;
    for (const auto& [pair, n] : counts) {
      if (n > most) {
        most = n;
        best = pair;
      }
    }
    std::string bytes = tokens[best.first] + tokens[best.second];
    const auto known = std::find(tokens.begin() + 1, tokens.end(), bytes);
    const auto id = static_cast<uint32_t>(known - tokens.begin());
    if (known == tokens.end()) tokens.push_back(bytes);
    merges.push_back(best);
    for (auto& word : words) {
      std::vector<uint32_t> merged;
      for (size_t i = 0; i < word.size(); ++i) {
        if (i + 1 < word.size() && word[i] == best.first && word[i + 1] == best.second) {
          merged.push_back(id);
          ++i;
        } else {
          merged.push_back(word[i]);
        }
      }
      word = merged;
    }
  }
  return merges;
}

TEST(TrainBpe, MergesTheMostFrequentPairAsCountedAfresh) {
  std::mt19937 random(7);
  std::string text;
  for (int i = 0; i < 1500; ++i)
    text += absl::StrCat(std::string(1 + random() % 3, "abc"[random() % 3]), random() % 4 == 0 ? " " : "");
  const auto tokenizer = Must(TrainBpe({.vocab_size = 320}, Once(text)));
  ASSERT_NE(tokenizer, nullptr);
  const auto& merges = static_cast<const BpeTokenizer&>(*tokenizer).vocabulary().merges;
  // A run such as "aaa" counts its pair twice until it is merged; both do so.
  EXPECT_EQ(merges, SlowMerges(text, merges.size()));
}

TEST(TrainBpe, SaysHowLargeAVocabularyTheTextSupports) {
  const auto tokenizer = TrainBpe({.vocab_size = 5000}, Once("abab abab abab"));
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("5000"));
  // ab, abab and " abab" (" a" is inside) are all that occur twice.
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("at most 260"));
  EXPECT_OK(TrainBpe({.vocab_size = 260}, Once("abab abab abab")));
}

TEST(PreTokenizer, SplitsAsGpt2) {
  EXPECT_THAT(WordsOf("Hello  world's 12x\n\n y"), ElementsAre("Hello", " ", " world", "'s", " 12", "x", "\n\n", " y"));
  EXPECT_THAT(WordsOf("don't I'LL  "), ElementsAre("don", "'t", " I", "'", "LL", "  "));
  EXPECT_THAT(WordsOf(" \xff\xfe z"), ElementsAre(" \xff\xfe", " z"));
}

TEST(Tokenizer, DecodeUndoesEncodeOnAnyBytes) {
  const auto tokenizer = Must(ParseTokenizer(Golden("bpe.json"), "bpe"));
  const auto pairs = Must(ParseTokenizer(Golden("bpe_pairs.json"), "bpe_pairs"));
  std::mt19937 random(1);
  for (int i = 0; i < 3000; ++i) {
    const std::string text = RandomText(&random, i % 2 == 0);
    for (const Tokenizer* t : {tokenizer.get(), pairs.get()}) {
      const auto ids = t->Encode(text);
      ASSERT_OK(ids);
      ASSERT_EQ(t->Decode(*ids), text);
      std::vector<uint32_t> ordinary;
      ASSERT_OK(t->EncodeOrdinary(text, &ordinary));
      ASSERT_EQ(t->Decode(ordinary), text);
      for (const uint32_t id : ordinary) ASSERT_FALSE(t->IsSpecial(id)) << text;
    }
  }
}

TEST(Tokenizer, LongWordsEncodeAsTheirRuleSaysAndInReasonableTime) {
  const auto tokenizer = Must(ParseTokenizer(Golden("bpe.json"), "bpe"));
  const auto& bpe = static_cast<const BpeTokenizer&>(*tokenizer);
  std::map<std::pair<uint32_t, uint32_t>, std::pair<size_t, uint32_t>> ranks;
  const auto& v = bpe.vocabulary();
  for (size_t rank = 0; rank < v.merges.size(); ++rank) {
    const std::string bytes = v.tokens[v.merges[rank].first] + v.tokens[v.merges[rank].second];
    ranks[v.merges[rank]] = {
        rank, static_cast<uint32_t>(std::find(v.tokens.begin() + 1, v.tokens.end(), bytes) - v.tokens.begin())};
  }
  std::mt19937 random(5);
  for (const size_t size : {47, 48, 49, 200}) {
    std::string word;
    while (word.size() < size) word += std::vector<std::string>{"th", "e", "ab", "a", "we", "nt", "and"}[random() % 7];
    std::vector<uint32_t> expected;
    for (const char byte : word) expected.push_back(tokenizer->Encode(std::string(1, byte))->at(0));
    for (;;) {
      size_t best = expected.size(), best_rank = ~size_t{0};
      for (size_t i = 0; i + 1 < expected.size(); ++i) {
        const auto it = ranks.find({expected[i], expected[i + 1]});
        if (it != ranks.end() && it->second.first < best_rank) {
          best_rank = it->second.first;
          best = i;
        }
      }
      if (best == expected.size()) break;
      expected[best] = ranks[{expected[best], expected[best + 1]}].second;
      expected.erase(expected.begin() + static_cast<ptrdiff_t>(best) + 1);
    }
    EXPECT_EQ(*tokenizer->Encode(word), expected) << word;
  }
  const std::string long_word(2 << 20, 'a');
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(tokenizer->Decode(*tokenizer->Encode(long_word)), long_word);
  // Looking for the best pair afresh each time would take hours.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
}

TEST(Tokenizer, ThreadsEncodeAlike) {
  const auto tokenizer = Must(ParseTokenizer(Golden("bpe.json"), "bpe"));
  const std::string text = Golden("corpus.txt");
  const std::vector<uint32_t> expected = *tokenizer->Encode(text);
  std::vector<std::vector<uint32_t>> got(4);
  std::vector<std::thread> threads;
  for (auto& ids : got) threads.emplace_back([&] { ids = *tokenizer->Encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& ids : got) EXPECT_EQ(ids, expected);
}

TEST(Characters, AreSortedAndUnknownOnesNamed) {
  const auto tokenizer = Must(TrainCharacters(Once("banana é\n")));
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->vocab_size(), 6u);  // \n, space, a, b, n, é
  EXPECT_EQ(*tokenizer->Encode("ab é\n"), (std::vector<uint32_t>{2, 3, 1, 5, 0}));
  EXPECT_EQ(tokenizer->Decode(std::vector<uint32_t>{3, 2, 4, 5}), "bané");
  EXPECT_FALSE(tokenizer->end_of_text().has_value());
  const auto unknown = tokenizer->Encode("ba🙂");
  ASSERT_FALSE(unknown.ok());
  EXPECT_THAT(std::string(unknown.status().message()), HasSubstr("U+1F642"));
  EXPECT_THAT(std::string(unknown.status().message()), HasSubstr("byte 2"));
}

// As transformers 5 saves it.
TEST(SpecialTokens, StandBehindTheOthersAndAreNeverMadeOfOrdinaryText) {
  const auto texts = [](const auto& each) { return each("aab aab aab|<>_im"); };
  const std::vector<std::string> special = {"<|im_start|>", "<|im_end|>"};
  const auto without = *TrainBpe({.vocab_size = 260}, texts);
  const auto with = *TrainBpe({.vocab_size = 260, .special_tokens = special}, texts);
  const auto characters = *TrainCharacters(texts, special);
  EXPECT_EQ(with->vocab_size(), 262u);
  for (uint32_t id = 0; id < 260; ++id) EXPECT_EQ(with->TokenBytes(id), without->TokenBytes(id));
  for (const Tokenizer* tokenizer : {with.get(), characters.get()}) {
    const uint32_t first = tokenizer->vocab_size() - 2;
    const std::string text = "aab<|im_end|>aab";
    const std::vector<uint32_t> ids = *tokenizer->Encode(text);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), first + 1), 1);
    EXPECT_TRUE(tokenizer->IsSpecial(first) && tokenizer->IsSpecial(first + 1));
    EXPECT_FALSE(tokenizer->IsSpecial(first + 2));
    EXPECT_EQ(tokenizer->Decode(ids), text);
    EXPECT_EQ(tokenizer->AddedId("<|im_start|>"), first);
    std::vector<uint32_t> ordinary;
    ASSERT_OK(with->EncodeOrdinary(text, &ordinary));
    EXPECT_EQ(with->Decode(ordinary), text);
    for (const uint32_t id : ordinary) EXPECT_FALSE(with->IsSpecial(id));
    // Read back, they are the same tokenizer.
    const auto again = ParseTokenizer(tokenizer->ToJson(), "again");
    ASSERT_OK(again);
    EXPECT_EQ(*(*again)->Encode(text), ids);
    EXPECT_EQ((*again)->ToJson(), tokenizer->ToJson());
  }
  EXPECT_FALSE(TrainBpe({.vocab_size = 260, .special_tokens = {"a", "a"}}, texts).ok());
  EXPECT_FALSE(TrainCharacters(texts, {""}).ok());
}

TEST(SpecialTokens, OneThatTouchesAMarkedByteIsOrdinary) {
  const auto tokenizer =
      *TrainBpe({.vocab_size = 257, .special_tokens = {"<a>", "<a><a>"}}, [](const auto& each) { return each("ab"); });
  const std::string text = "<a><a>";
  std::vector<uint8_t> marks(text.size(), 0);
  std::vector<uint32_t> ids;
  ASSERT_OK(tokenizer->EncodeMarked(text, marks, &ids));
  EXPECT_EQ(ids, std::vector<uint32_t>({258}));
  ids.clear();
  marks[5] = 1;
  ASSERT_OK(tokenizer->EncodeMarked(text, marks, &ids));
  ASSERT_EQ(ids.size(), 4u) << "the first as a token, the second as three bytes";
  EXPECT_EQ(ids[0], 257u);
  EXPECT_EQ(tokenizer->Decode(ids), text);
}

TEST(TokenizerJson, ATemplateThatAddsNoTokensIsFine) {
  Json changed = Json::parse(Golden("bpe.json"));
  changed["post_processor"] = Json::parse(R"({"type": "TemplateProcessing",
      "single": [{"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
      "special_tokens": {}})");
  EXPECT_OK(ParseTokenizer(changed.dump(), "t"));
}

TEST(TokenizerJson, NamesTheFieldThatIsNotSupported) {
  const Json golden = Json::parse(Golden("bpe.json"));
  const auto error = [&](const std::string& pointer, const Json& value) {
    Json changed = golden;
    changed[Json::json_pointer(pointer)] = value;
    const auto tokenizer = ParseTokenizer(changed.dump(), "x/tokenizer.json");
    EXPECT_FALSE(tokenizer.ok()) << pointer;
    return std::string(tokenizer.status().message());
  };
  EXPECT_THAT(error("/model/type", "Unigram"), HasSubstr("x/tokenizer.json: model.type is \"Unigram\""));
  EXPECT_THAT(error("/normalizer", {{"type", "NFC"}}), HasSubstr("normalizer is {\"type\":\"NFC\"}"));
  EXPECT_THAT(error("/pre_tokenizer", {{"type", "Whitespace"}}), HasSubstr("pre_tokenizer is"));
  EXPECT_THAT(error("/pre_tokenizer/use_regex", false), HasSubstr("pre_tokenizer.use_regex"));
  EXPECT_THAT(error("/pre_tokenizer/add_prefix_space", true), HasSubstr("pre_tokenizer.add_prefix_space"));
  EXPECT_THAT(error("/decoder", nullptr), HasSubstr("decoder is null"));
  EXPECT_THAT(error("/post_processor", {{"type", "TemplateProcessing"}}), HasSubstr("post_processor"));
  EXPECT_THAT(error("/post_processor", Json::parse(R"({"type": "TemplateProcessing", "single": [
                    {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]})")),
              HasSubstr("adds no tokens"));
  EXPECT_THAT(error("/model/byte_fallback", true), HasSubstr("model.byte_fallback"));
  EXPECT_THAT(error("/model/dropout", 0.1), HasSubstr("model.dropout"));
  EXPECT_THAT(error("/model/merges/3", "onlyone"), HasSubstr("model.merges[3]"));
  EXPECT_THAT(error("/model/merges/3", {"t", "nosuch"}), HasSubstr("\"nosuch\" is not in model.vocab"));
  EXPECT_THAT(error("/model/vocab/t", -1), HasSubstr("model.vocab: the id of \"t\""));
  EXPECT_THAT(error("/model/vocab/t", 5), HasSubstr("id 5 is given twice"));
  EXPECT_THAT(error("/added_tokens/0/lstrip", true), HasSubstr("added_tokens[0].lstrip"));
  EXPECT_THAT(error("/model", "x"), HasSubstr("model"));
  EXPECT_FALSE(ParseTokenizer("{\"model\": ", "t").ok());
}

TEST(Unicode, FindsTheFirstInvalidByte) {
  EXPECT_FALSE(FirstInvalidUtf8("aé🙂\u0800\uffff").has_value());
  EXPECT_EQ(FirstInvalidUtf8("ab\xff"), 2u);
  EXPECT_EQ(FirstInvalidUtf8("a\xc3"), 1u);             // cut short
  EXPECT_EQ(FirstInvalidUtf8("\xc0\xaf"), 0u);          // overlong
  EXPECT_EQ(FirstInvalidUtf8("x\xed\xa0\x80"), 1u);     // a surrogate
  EXPECT_EQ(FirstInvalidUtf8("\xf4\x90\x80\x80"), 0u);  // above U+10FFFF
  EXPECT_EQ(FirstInvalidUtf8("\xe0\x80\x80"), 0u);
}

}  // namespace
}  // namespace millrace::text
