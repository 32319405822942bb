// Small rating sets for tests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "proto/millrace/v1/ratings.pb.h"

namespace millrace::testing {

inline v1::RatingSet RatingSetOf(const std::string& id, uint32_t raters) {
  v1::RatingSet set;
  set.set_id(id);
  set.set_title("Which answer is better?");
  set.set_raters(raters);
  return set;
}

// "question I", "good answer I", "bad answer I".
inline v1::RatingPair RatingPairOf(uint64_t i) {
  const std::string number = std::to_string(i);
  v1::RatingPair pair;
  v1::RatingPair::Message* prompt = pair.add_prompt();
  prompt->set_role("user");
  prompt->set_content("question " + number);
  pair.set_a("good answer " + number);
  pair.set_b("bad answer " + number);
  pair.set_source_a("sft@best");
  pair.set_source_b("pretrain@last");
  return pair;
}

inline std::vector<v1::RatingPair> RatingPairs(uint64_t count) {
  std::vector<v1::RatingPair> pairs;
  for (uint64_t i = 0; i < count; ++i) pairs.push_back(RatingPairOf(i));
  return pairs;
}

inline v1::Rating RatingOf(const std::string& rater, v1::Rating::Choice choice) {
  v1::Rating rating;
  rating.set_rater(rater);
  rating.set_choice(choice);
  return rating;
}

}  // namespace millrace::testing
