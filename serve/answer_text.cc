#include "serve/answer_text.h"

#include <algorithm>
#include <utility>

namespace millrace::serve {

AnswerText::AnswerText(const std::vector<std::string>& stops) {
  for (const std::string& text : stops) {
    Stop& stop = stops_.emplace_back();
    stop.text = text;
    stop.fallback.assign(text.size(), 0);
    for (size_t i = 1, matched = 0; i < text.size(); ++i) {
      while (matched > 0 && text[i] != text[matched]) matched = stop.fallback[matched - 1];
      if (text[i] == text[matched]) ++matched;
      stop.fallback[i] = matched;
    }
  }
}

std::string AnswerText::Add(absl::string_view bytes) {
  std::string sure;
  for (const char byte : bytes) {
    held_ += byte;
    ++taken_;
    size_t begun = 0, complete = 0;
    for (Stop& stop : stops_) {
      while (stop.matched > 0 && stop.text[stop.matched] != byte) stop.matched = stop.fallback[stop.matched - 1];
      if (stop.text[stop.matched] == byte) ++stop.matched;
      begun = std::max(begun, stop.matched);
      if (stop.matched == stop.text.size()) complete = std::max(complete, stop.matched);
    }
    if (complete > 0) {
      taken_ -= complete;
      sure.append(held_, 0, held_.size() - complete);
      held_.clear();
      stopped_ = true;
      break;
    }
    sure.append(held_, 0, held_.size() - begun);
    held_.erase(0, held_.size() - begun);
  }
  std::string text = readable_.Add(sure);
  if (stopped_) text += readable_.Finish();
  return text;
}

std::string AnswerText::Finish() {
  if (stopped_) return "";
  std::string text = readable_.Add(std::exchange(held_, std::string()));
  return text + readable_.Finish();
}

}  // namespace millrace::serve
