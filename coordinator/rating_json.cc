#include "coordinator/rating_json.h"

#include <initializer_list>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"
#include "coordinator/rating_order.h"
#include "coordinator/rating_store.h"
#include "nlohmann/json.hpp"
#include "text/examples.h"

namespace millrace::coordinator {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 64;

absl::Status Wrong(std::string what) { return absl::InvalidArgumentError(std::move(what)); }

absl::StatusOr<Json> ParseObject(absl::string_view text) {
  const auto bounded = [](int depth, Json::parse_event_t, Json&) { return depth <= kMaxDepth; };
  Json object = Json::parse(text.begin(), text.end(), bounded, /*allow_exceptions=*/false);
  if (object.is_discarded()) return Wrong("not JSON");
  if (!object.is_object()) return Wrong("not a JSON object");
  return object;
}

absl::Status RefuseOtherFields(const Json& object, std::initializer_list<absl::string_view> fields) {
  for (const auto& [name, value] : object.items()) {
    if (absl::c_linear_search(fields, name)) continue;
    return Wrong(absl::StrCat("unknown field '", name.substr(0, 64), "'; there are ", absl::StrJoin(fields, ", ")));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadString(const Json& object, const char* field, bool required) {
  const auto it = object.find(field);
  if (it == object.end() && !required) return std::string();
  if (it == object.end()) return Wrong(absl::StrCat("there is no field '", field, "'"));
  if (!it->is_string()) return Wrong(absl::StrCat("the field '", field, "' is no string"));
  return it->get<std::string>();
}

// Whole numbers from 0.
absl::StatusOr<uint64_t> ReadNumber(const Json& object, const char* field, bool required) {
  const auto it = object.find(field);
  if (it == object.end() && !required) return 0;
  if (it == object.end()) return Wrong(absl::StrCat("there is no field '", field, "'"));
  if (!it->is_number_unsigned()) return Wrong(absl::StrCat("the field '", field, "' is no whole number from 0"));
  return it->get<uint64_t>();
}

absl::StatusOr<v1::Rating::Choice> ReadChoice(const Json& object, bool swapped) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string choice, ReadString(object, "choice", /*required=*/true));
  if (choice == "left") return swapped ? v1::Rating::B : v1::Rating::A;
  if (choice == "right") return swapped ? v1::Rating::A : v1::Rating::B;
  if (choice == "tie") return v1::Rating::TIE;
  if (choice == "skip") return v1::Rating::SKIP;
  return Wrong(absl::StrCat("the field 'choice' is '", choice.substr(0, 64), "'; left, right, tie or skip"));
}

}  // namespace

void AddPrompt(absl::Span<const text::Message> messages, v1::RatingPair* pair) {
  for (const text::Message& message : messages) {
    v1::RatingPair::Message* const added = pair->add_prompt();
    added->set_role(message.role);
    added->set_content(message.content);
  }
}

absl::StatusOr<v1::RatingPair> ParseRatingPair(absl::string_view line) {
  MILLRACE_ASSIGN_OR_RETURN(const text::Example prompt, text::ParseExample(text::ExampleKind::kPrompts, line));
  MILLRACE_ASSIGN_OR_RETURN(const Json object, ParseObject(line));
  v1::RatingPair pair;
  AddPrompt(prompt.messages, &pair);
  MILLRACE_ASSIGN_OR_RETURN(*pair.mutable_a(), ReadString(object, "a", /*required=*/true));
  MILLRACE_ASSIGN_OR_RETURN(*pair.mutable_b(), ReadString(object, "b", /*required=*/true));
  MILLRACE_ASSIGN_OR_RETURN(*pair.mutable_source_a(), ReadString(object, "source_a", /*required=*/false));
  MILLRACE_ASSIGN_OR_RETURN(*pair.mutable_source_b(), ReadString(object, "source_b", /*required=*/false));
  MILLRACE_RETURN_IF_ERROR(CheckRatingPair(pair));
  return pair;
}

absl::StatusOr<RateRequest> ParseRateRequest(absl::string_view body) {
  MILLRACE_ASSIGN_OR_RETURN(const Json object, ParseObject(body));
  MILLRACE_RETURN_IF_ERROR(
      RefuseOtherFields(object, {"set", "rater", "pair", "choice", "strength", "flagged", "note"}));
  RateRequest request;
  v1::Rating& rating = request.rating;
  MILLRACE_ASSIGN_OR_RETURN(request.set_id, ReadString(object, "set", /*required=*/true));
  MILLRACE_ASSIGN_OR_RETURN(*rating.mutable_rater(), ReadString(object, "rater", /*required=*/true));
  MILLRACE_ASSIGN_OR_RETURN(request.pair, ReadNumber(object, "pair", /*required=*/true));
  const bool swapped = RatingOrder(request.set_id, rating.rater()).Swapped(request.pair);
  MILLRACE_ASSIGN_OR_RETURN(const v1::Rating::Choice choice, ReadChoice(object, swapped));
  rating.set_choice(choice);
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t strength, ReadNumber(object, "strength", /*required=*/false));
  if (strength > kMaxRatingStrength) {
    return Wrong(absl::StrCat("the field 'strength' is ", strength, "; 1 to ", kMaxRatingStrength));
  }
  rating.set_strength(static_cast<uint32_t>(strength));
  MILLRACE_ASSIGN_OR_RETURN(*rating.mutable_note(), ReadString(object, "note", /*required=*/false));
  if (const auto flagged = object.find("flagged"); flagged != object.end()) {
    if (!flagged->is_boolean()) return Wrong("the field 'flagged' is neither true nor false");
    rating.set_flagged(flagged->get<bool>());
  }
  return request;
}

absl::StatusOr<UndoRequest> ParseUndoRequest(absl::string_view body) {
  MILLRACE_ASSIGN_OR_RETURN(const Json object, ParseObject(body));
  MILLRACE_RETURN_IF_ERROR(RefuseOtherFields(object, {"set", "rater", "pair"}));
  UndoRequest request;
  MILLRACE_ASSIGN_OR_RETURN(request.set_id, ReadString(object, "set", /*required=*/true));
  MILLRACE_ASSIGN_OR_RETURN(request.rater, ReadString(object, "rater", /*required=*/true));
  MILLRACE_ASSIGN_OR_RETURN(request.pair, ReadNumber(object, "pair", /*required=*/true));
  return request;
}

}  // namespace millrace::coordinator
