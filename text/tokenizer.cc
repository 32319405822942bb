// Reads tokenizer.json: the kinds that bpe.h and characters.h write, and byte-level BPEs like GPT-2's.
#include "text/tokenizer.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/files.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "text/added_tokens_json.h"
#include "text/bpe.h"
#include "text/characters.h"
#include "text/pre_tokenizer.h"
#include "text/unicode.h"

namespace millrace::text {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kMaxJsonBytes = 256 << 20;
constexpr uint64_t kMaxVocabulary = 4 << 20;
constexpr int kMaxDepth = 64;

absl::Status NotSupported(absl::string_view field, const Json& found, absl::string_view supported) {
  std::string shown = found.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (shown.size() > 120) shown = shown.substr(0, 120) + "…";
  return absl::UnimplementedError(
      absl::StrCat(field, " is ", shown, ", which is not supported; supported: ", supported));
}

const Json& Field(const Json& object, const char* name) {
  static const Json null;
  if (!object.is_object()) return null;
  const auto it = object.find(name);
  return it == object.end() ? null : *it;
}

std::string TypeOf(const Json& object) {
  const Json& type = Field(object, "type");
  return type.is_string() ? type.get<std::string>() : "";
}

absl::Status RequireAbsent(const Json& object, const std::string& where, const char* name) {
  const Json& value = Field(object, name);
  const bool absent =
      value.is_null() || value == Json(false) || value == Json("") || (value.is_number() && value == Json(0.0));
  return absent ? absl::OkStatus() : NotSupported(where + name, value, "null");
}

// Ids by token string, as bytes of the JSON: each id below kMaxVocabulary, used once.
absl::StatusOr<std::vector<std::string>> ReadVocabulary(const Json& vocab) {
  if (!vocab.is_object()) return absl::InvalidArgumentError("model.vocab is missing or no object");
  if (vocab.size() > kMaxVocabulary) return absl::InvalidArgumentError("model.vocab has more than 4 million tokens");
  std::vector<std::string> tokens;
  for (const auto& [token, id] : vocab.items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= kMaxVocabulary) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.vocab: the id of \"", token, "\" is no whole number below ", kMaxVocabulary));
    }
    if (token.empty()) return absl::InvalidArgumentError("model.vocab: a token is empty");
    const auto index = id.get<size_t>();
    if (index >= tokens.size()) tokens.resize(index + 1);
    if (!tokens[index].empty()) {
      return absl::InvalidArgumentError(absl::StrCat("model.vocab: id ", index, " is given twice"));
    }
    tokens[index] = token;
  }
  if (tokens.empty()) return absl::InvalidArgumentError("model.vocab is empty");
  return tokens;
}

absl::StatusOr<std::vector<AddedToken>> ReadAddedTokens(const Json& list) {
  std::vector<AddedToken> added;
  if (list.is_null()) return added;
  if (!list.is_array()) return absl::InvalidArgumentError("added_tokens is no list");
  if (list.size() > 65536) return absl::InvalidArgumentError("added_tokens has more than 65536 entries");
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = absl::StrCat("added_tokens[", i, "].");
    const Json& entry = list[i];
    const Json& id = Field(entry, "id");
    const Json& content = Field(entry, "content");
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= kMaxVocabulary)
      return absl::InvalidArgumentError(where + "id is missing or no id");
    if (!content.is_string() || content.get_ref<const std::string&>().empty()) {
      return absl::InvalidArgumentError(where + "content is missing or empty");
    }
    for (const char* name : {"single_word", "lstrip", "rstrip"})
      MILLRACE_RETURN_IF_ERROR(RequireAbsent(entry, where, name));
    added.push_back({.id = id.get<uint32_t>(),
                     .content = content.get<std::string>(),
                     .special = Field(entry, "special") == Json(true),
                     .normalized = Field(entry, "normalized") == Json(true)});
  }
  return added;
}

absl::StatusOr<std::string> BytesOfToken(const std::string& token) {
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const Character character = FirstCharacter(absl::string_view(token).substr(at));
    const int byte = character.valid ? ByteOfCharacter(character.code) : -1;
    if (byte < 0) {
      return absl::InvalidArgumentError(absl::StrCat("model.vocab: \"", token, "\" is not in byte-level characters"));
    }
    bytes.push_back(static_cast<char>(byte));
    at += character.bytes;
  }
  return bytes;
}

// Whether a post-processor leaves the tokens as they are: none, ByteLevel, or a template that adds none to a single
// sequence, as transformers 5 writes it.
bool AddsNoTokens(const Json& post_processor) {
  if (post_processor.is_null() || TypeOf(post_processor) == "ByteLevel") return true;
  if (TypeOf(post_processor) != "TemplateProcessing") return false;
  const Json& single = Field(post_processor, "single");
  return single.is_array() && single.size() == 1 && single[0].is_object() && single[0].contains("Sequence");
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseBpe(const Json& json) {
  const Json& model = Field(json, "model");
  for (const char* name :
       {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges"}) {
    MILLRACE_RETURN_IF_ERROR(RequireAbsent(model, "model.", name));
  }
  const Json& pre_tokenizer = Field(json, "pre_tokenizer");
  const Json& use_regex = Field(pre_tokenizer, "use_regex");
  if (TypeOf(pre_tokenizer) != "ByteLevel") return NotSupported("pre_tokenizer", pre_tokenizer, "ByteLevel");
  if (use_regex == Json(false)) return NotSupported("pre_tokenizer.use_regex", use_regex, "true");
  MILLRACE_RETURN_IF_ERROR(RequireAbsent(pre_tokenizer, "pre_tokenizer.", "add_prefix_space"));
  const Json& post_processor = Field(json, "post_processor");
  if (!AddsNoTokens(post_processor)) {
    return NotSupported("post_processor", post_processor, "null, ByteLevel or a template that adds no tokens");
  }
  const Json& decoder = Field(json, "decoder");
  if (TypeOf(decoder) != "ByteLevel") return NotSupported("decoder", decoder, "ByteLevel");

  BpeVocabulary vocabulary;
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<std::string> names, ReadVocabulary(Field(model, "vocab")));
  MILLRACE_ASSIGN_OR_RETURN(vocabulary.added, ReadAddedTokens(Field(json, "added_tokens")));
  vocabulary.tokens.resize(names.size());
  std::vector<bool> is_added(names.size(), false);
  for (const AddedToken& token : vocabulary.added) {
    if (token.id >= names.size()) {
      vocabulary.tokens.resize(std::max<size_t>(vocabulary.tokens.size(), token.id + 1));
      is_added.resize(vocabulary.tokens.size(), false);
    } else if (!names[token.id].empty() && names[token.id] != token.content) {
      return absl::InvalidArgumentError(absl::StrCat("added_tokens: id ", token.id, " is \"", token.content,
                                                     "\" there and \"", names[token.id], "\" in model.vocab"));
    }
    if (is_added[token.id])
      return absl::InvalidArgumentError(absl::StrCat("added_tokens: id ", token.id, " is given twice"));
    is_added[token.id] = true;
    vocabulary.tokens[token.id] = token.content;
  }
  absl::flat_hash_map<absl::string_view, uint32_t> ids;
  for (uint32_t id = 0; id < names.size(); ++id) {
    if (names[id].empty()) continue;
    ids[names[id]] = id;
    if (is_added[id]) continue;
    MILLRACE_ASSIGN_OR_RETURN(vocabulary.tokens[id], BytesOfToken(names[id]));
  }

  const Json& merges = Field(model, "merges");
  if (!merges.is_array()) return absl::InvalidArgumentError("model.merges is missing or no list");
  if (merges.size() > kMaxVocabulary) return absl::InvalidArgumentError("model.merges has more than 4 million entries");
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    std::vector<std::string> parts;
    if (merges[rank].is_string()) {
      parts = absl::StrSplit(merges[rank].get_ref<const std::string&>(), ' ');
    } else if (merges[rank].is_array() && merges[rank].size() == 2 && merges[rank][0].is_string() &&
               merges[rank][1].is_string()) {
      parts = {merges[rank][0].get<std::string>(), merges[rank][1].get<std::string>()};
    }
    if (parts.size() != 2) return absl::InvalidArgumentError(absl::StrCat("model.merges[", rank, "] is no pair"));
    std::pair<uint32_t, uint32_t> pair;
    for (const int side : {0, 1}) {
      const auto id = ids.find(parts[side]);
      if (id == ids.end() || is_added[id->second]) {
        return absl::InvalidArgumentError(
            absl::StrCat("model.merges[", rank, "]: \"", parts[side], "\" is not in model.vocab"));
      }
      (side == 0 ? pair.first : pair.second) = id->second;
    }
    vocabulary.merges.push_back(pair);
  }
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<BpeTokenizer> tokenizer, BpeTokenizer::Create(std::move(vocabulary)));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseCharacters(const Json& json) {
  const Json& pre_tokenizer = Field(json, "pre_tokenizer");
  const Json& pattern = Field(Field(pre_tokenizer, "pattern"), "Regex");
  if (TypeOf(pre_tokenizer) != "Split" || pattern != Json("[\\s\\S]") ||
      Field(pre_tokenizer, "behavior") != Json("Isolated") || Field(pre_tokenizer, "invert") == Json(true)) {
    return NotSupported("pre_tokenizer", pre_tokenizer,
                        "for WordLevel, Split at Regex [\\s\\S], Isolated: one token a character");
  }
  if (TypeOf(Field(json, "decoder")) != "Fuse")
    return NotSupported("decoder", Field(json, "decoder"), "for WordLevel, Fuse");
  MILLRACE_ASSIGN_OR_RETURN(std::vector<AddedToken> added, ReadAddedTokens(Field(json, "added_tokens")));
  const Json& post_processor = Field(json, "post_processor");
  if (!AddsNoTokens(post_processor)) {
    return NotSupported("post_processor", post_processor, "for WordLevel, null or a template that adds no tokens");
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<std::string> names, ReadVocabulary(Field(Field(json, "model"), "vocab")));
  std::vector<uint32_t> characters;
  std::set<uint32_t> seen;
  for (size_t id = 0; id < names.size(); ++id) {
    const Character character = names[id].empty() ? Character{} : FirstCharacter(names[id]);
    if (!character.valid || character.bytes != names[id].size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.vocab: \"", names[id], "\" (id ", id, ") is not one character"));
    }
    if (!seen.insert(character.code).second)
      return absl::InvalidArgumentError(absl::StrCat("model.vocab: \"", names[id], "\" is given twice"));
    characters.push_back(character.code);
  }
  for (size_t i = 0; i < added.size(); ++i) {
    if (added[i].id != characters.size() + i) {
      return absl::InvalidArgumentError(absl::StrCat("added_tokens[", i, "].id is ", added[i].id,
                                                     "; behind the characters of model.vocab it must be ",
                                                     characters.size() + i));
    }
  }
  return std::make_unique<CharacterTokenizer>(std::move(characters), std::move(added));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseUnnamed(absl::string_view text) {
  const auto bounded = [](int depth, Json::parse_event_t, Json&) { return depth <= kMaxDepth; };
  const Json json = Json::parse(text.begin(), text.end(), bounded, /*allow_exceptions=*/false);
  if (json.is_discarded()) return absl::InvalidArgumentError("not JSON");
  if (!json.is_object()) return absl::InvalidArgumentError("not a JSON object");
  for (const char* name : {"truncation", "padding", "normalizer"})
    MILLRACE_RETURN_IF_ERROR(RequireAbsent(json, "", name));
  const Json& model = Field(json, "model");
  if (!model.is_object()) return absl::InvalidArgumentError("the field model is missing");
  const std::string type = TypeOf(model);
  // GPT-2's own file leaves the type out.
  if (type == "BPE" || (type.empty() && model.contains("merges"))) return ParseBpe(json);
  if (type == "WordLevel") return ParseCharacters(json);
  return NotSupported("model.type", Field(model, "type"), "BPE (byte level) and WordLevel (characters)");
}

}  // namespace

std::string Tokenizer::Decode(absl::Span<const uint32_t> ids) const {
  std::string text;
  for (const uint32_t id : ids) text += TokenBytes(id);
  return text;
}

absl::Status Tokenizer::EncodeAround(absl::string_view text, absl::Span<const uint8_t> ordinary, bool normalized,
                                     std::vector<uint32_t>* ids) const {
  const auto rest = [&](size_t begin, size_t end) {
    if (begin == end) return absl::OkStatus();
    const absl::string_view part = text.substr(begin, end - begin);
    if (normalized) return EncodeOrdinary(part, ids);
    return EncodeAround(part, ordinary.empty() ? ordinary : ordinary.subspan(begin, end - begin), true, ids);
  };
  std::vector<const AddedToken*> tokens;
  std::array<bool, 256> starts = {};
  for (const AddedToken& token : added_tokens()) {
    if (token.normalized != normalized) continue;
    tokens.push_back(&token);
    starts[static_cast<uint8_t>(token.content[0])] = true;
  }
  size_t begin = 0;
  for (size_t at = 0; !tokens.empty() && at < text.size();) {
    const AddedToken* match = nullptr;  // the longest here
    if (starts[static_cast<uint8_t>(text[at])]) {
      for (const AddedToken* token : tokens) {
        const size_t size = token->content.size();
        if ((match != nullptr && size <= match->content.size()) || text.substr(at, size) != token->content) continue;
        const absl::Span<const uint8_t> marks = ordinary.empty() ? ordinary : ordinary.subspan(at, size);
        if (std::find(marks.begin(), marks.end(), 1) == marks.end()) match = token;
      }
    }
    if (match == nullptr) {
      ++at;
      continue;
    }
    MILLRACE_RETURN_IF_ERROR(rest(begin, at));
    ids->push_back(match->id);
    begin = at += match->content.size();
  }
  return rest(begin, text.size());
}

absl::StatusOr<std::vector<uint32_t>> Tokenizer::Encode(absl::string_view text) const {
  std::vector<uint32_t> ids;
  MILLRACE_RETURN_IF_ERROR(EncodeAround(text, {}, false, &ids));
  return ids;
}

absl::Status Tokenizer::EncodeMarked(absl::string_view text, absl::Span<const uint8_t> ordinary,
                                     std::vector<uint32_t>* ids) const {
  return EncodeAround(text, ordinary, false, ids);
}

std::optional<uint32_t> Tokenizer::AddedId(absl::string_view content) const {
  for (const AddedToken& token : added_tokens()) {
    if (token.content == content) return token.id;
  }
  return std::nullopt;
}

absl::StatusOr<std::vector<AddedToken>> SpecialTokens(absl::Span<const std::string> contents, uint32_t first_id) {
  constexpr size_t kMaxTokens = 1024;
  constexpr size_t kMaxBytes = 256;
  if (contents.size() > kMaxTokens)
    return absl::InvalidArgumentError(absl::StrCat("special_tokens has more than ", kMaxTokens, " entries"));
  std::vector<AddedToken> tokens;
  std::set<absl::string_view> seen;
  for (const std::string& content : contents) {
    const std::string where = absl::StrCat("special_tokens[", tokens.size(), "]");
    if (content.empty() || content.size() > kMaxBytes || FirstInvalidUtf8(content)) {
      return absl::InvalidArgumentError(absl::StrCat(where, " must be UTF-8 of 1 to ", kMaxBytes, " bytes"));
    }
    if (!seen.insert(content).second)
      return absl::InvalidArgumentError(absl::StrCat(where, " '", content, "' is given twice"));
    tokens.push_back({.id = first_id + static_cast<uint32_t>(tokens.size()), .content = content});
  }
  return tokens;
}

Json AddedTokensJson(absl::Span<const AddedToken> tokens) {
  Json added = Json::array();
  for (const AddedToken& token : tokens) {
    added.push_back({{"id", token.id},
                     {"content", token.content},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", token.normalized},
                     {"special", token.special}});
  }
  return added;
}

std::vector<uint32_t> Tokenizer::TextBytes() const {
  std::vector<uint32_t> bytes(vocab_size());
  for (uint32_t id = 0; id < bytes.size(); ++id) {
    if (!IsSpecial(id)) bytes[id] = static_cast<uint32_t>(TokenBytes(id).size());
  }
  return bytes;
}

std::string Tokenizer::ConfigJson(absl::string_view model_type) const {
  Json json = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  if (const std::optional<uint32_t> id = end_of_text()) {
    json["add_prefix_space"] = false;
    json["bos_token"] = json["eos_token"] = TokenBytes(*id);
  }
  if (model_type == "bert") {
    for (const auto& [name, token] : {std::pair("cls_token", "[CLS]"), std::pair("sep_token", "[SEP]"),
                                      std::pair("pad_token", "[PAD]"), std::pair("mask_token", "[MASK]")}) {
      if (AddedId(token).has_value()) json[name] = token;
    }
  }
  if (model_type == "qwen2") json["auto_map"] = {{"AutoTokenizer", {nullptr, "none.TokenizerJsonAsItIs"}}};
  return json.dump(2) + "\n";
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizer(absl::string_view json, absl::string_view name) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = ParseUnnamed(json);
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), name);
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path) {
  std::error_code ignored;
  const std::string file = std::filesystem::is_directory(path, ignored) ? path + "/tokenizer.json" : path;
  MILLRACE_ASSIGN_OR_RETURN(const std::string json, ReadFile(file, kMaxJsonBytes));
  return ParseTokenizer(json, file);
}

}  // namespace millrace::text
