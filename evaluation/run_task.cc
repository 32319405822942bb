#include "evaluation/run_task.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/philox.h"
#include "common/status.h"
#include "evaluation/answers.h"
#include "evaluation/programs.h"
#include "model/continuation_scores.h"
#include "model/rollouts.h"
#include "text/jinja.h"
#include "text/unicode.h"

namespace millrace::evaluation {
namespace {

using Json = nlohmann::ordered_json;
using model::ContinuationTokens;

constexpr uint64_t kAnswersPurpose = 0x414E5357455253;  // "ANSWERS"
constexpr int64_t kAnswersTogether = 32;

class Runner {
 public:
  Runner(const v1::TaskSpec& task, absl::Span<const Question> questions, const ModelInUse& model,
         const RunOptions& options)
      : task_(task),
        questions_(questions),
        model_(*model.language_model),
        compute_(*model.compute),
        chat_template_(model.chat_template),
        options_(options),
        text_bytes_(model_.tokenizer().TextBytes()) {}

  absl::StatusOr<TaskResult> Run() {
    if (task_.chat() && chat_template_ == nullptr) {
      return absl::InvalidArgumentError("chat: the model has no chat template; it did not learn from conversations");
    }
    result_.records.resize(questions_.size());
    for (size_t i = 0; i < questions_.size(); ++i) result_.records[i]["example"] = questions_[i].where;
    if (task_.type() == "choice") {
      MILLRACE_RETURN_IF_ERROR(Choose());
    } else if (task_.type() == "exact_match") {
      MILLRACE_RETURN_IF_ERROR(Match());
    } else if (task_.type() == "pass_fail") {
      MILLRACE_RETURN_IF_ERROR(Try());
    } else {
      MILLRACE_RETURN_IF_ERROR(Predict());
    }
    return std::move(result_);
  }

 private:
  bool Wanted(absl::string_view metric) const {
    return std::find(task_.metrics().begin(), task_.metrics().end(), metric) != task_.metrics().end();
  }

  void Note(const std::string& what) {
    for (auto& [name, count] : result_.notes) {
      if (name != what) continue;
      ++count;
      return;
    }
    result_.notes.emplace_back(what, 1);
  }

  // ---- tokens ----

  absl::StatusOr<std::vector<uint32_t>> EncodeChat(const Question& question) const {
    MILLRACE_ASSIGN_OR_RETURN(const text::ChatText asked, chat_template_->Prompt(question.messages));
    MILLRACE_ASSIGN_OR_RETURN(text::ChatTokens tokens, text::EncodeChat(asked, model_.tokenizer()));
    return std::move(tokens.ids);
  }

  // The assistant's answer as it would be sampled: with what the template puts before it, without what ends its turn.
  absl::Status EncodeAnswer(const Question& question, absl::string_view answer, ContinuationTokens* tokens) const {
    MILLRACE_ASSIGN_OR_RETURN(tokens->context, EncodeChat(question));
    std::vector<text::Message> messages = question.messages;
    messages.push_back({"assistant", std::string(answer)});
    MILLRACE_ASSIGN_OR_RETURN(const text::ChatText said, chat_template_->Conversation(messages));
    MILLRACE_ASSIGN_OR_RETURN(const text::ChatTokens all, text::EncodeChat(said, model_.tokenizer()));
    MILLRACE_ASSIGN_OR_RETURN(const uint32_t end, text::EndOfTurn(*chat_template_, model_.tokenizer()));
    for (size_t i = tokens->context.size(); i < all.ids.size() && all.scored[i] != 0 && all.ids[i] != end; ++i) {
      tokens->ids.push_back(all.ids[i]);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ContinuationTokens> Encode(const Question& question, absl::string_view continuation) const {
    ContinuationTokens tokens;
    if (task_.chat()) {
      MILLRACE_RETURN_IF_ERROR(EncodeAnswer(question, continuation, &tokens));
    } else {
      const size_t context = absl::StripTrailingAsciiWhitespace(question.context).size();
      MILLRACE_ASSIGN_OR_RETURN(
          const std::vector<uint32_t> all,
          model_.EncodeDocument(absl::StrCat(question.context, question.delimiter, continuation)));
      size_t end = 0;
      for (const uint32_t id : all) {
        end += text_bytes_[id];
        // What ends in the context, and <|endoftext|> before it.
        (end <= context && tokens.ids.empty() ? tokens.context : tokens.ids).push_back(id);
      }
    }
    if (tokens.context.empty()) {
      return absl::InvalidArgumentError(
          "nothing predicts the first token: the tokenizer has no <|endoftext|>; give the task a prompt");
    }
    if (tokens.ids.empty()) return absl::InvalidArgumentError("the continuation has no tokens");
    return tokens;
  }

  // Scores of all continuations of all questions, one question's after another.
  absl::StatusOr<std::vector<model::ContinuationScore>> ScoreAll() {
    std::vector<ContinuationTokens> all;
    for (const Question& question : questions_) {
      for (const std::string& continuation : question.continuations) {
        absl::StatusOr<ContinuationTokens> tokens = Encode(question, continuation);
        if (!tokens.ok()) return Annotate(tokens.status(), question.where);
        all.push_back(*std::move(tokens));
      }
    }
    MILLRACE_ASSIGN_OR_RETURN(std::vector<model::ContinuationScore> scores,
                              model::ScoreContinuations(model_.network(), compute_, model_.weights(), all));
    size_t next = 0;
    for (const Question& question : questions_) {
      bool cut = false;
      for (size_t i = 0; i < question.continuations.size(); ++i) cut = scores[next++].cut > 0 || cut;
      if (cut) Note("contexts cut");
    }
    return scores;
  }

  static double Sum(const model::ContinuationScore& score) {
    double sum = 0;
    for (const float log_probability : score.log_probabilities) sum += log_probability;
    return sum;
  }

  void RecordPrompt(const Question& question, Json* record) const {
    if (!task_.chat()) {
      (*record)["context"] = question.context;
      return;
    }
    Json& messages = (*record)["messages"];
    for (const text::Message& message : question.messages) {
      messages.push_back({{"role", message.role}, {"content", message.content}});
    }
  }

  // ---- choice ----

  absl::Status Choose() {
    MILLRACE_ASSIGN_OR_RETURN(const std::vector<model::ContinuationScore> scores, ScoreAll());
    size_t next = 0;
    for (size_t i = 0; i < questions_.size(); ++i) {
      const Question& question = questions_[i];
      Json& record = result_.records[i];
      RecordPrompt(question, &record);
      std::vector<double> sums, by_characters, by_bytes;
      for (const std::string& choice : question.continuations) {
        const model::ContinuationScore& score = scores[next++];
        sums.push_back(Sum(score));
        by_characters.push_back(sums.back() / static_cast<double>(text::CountCharacters(choice)));
        by_bytes.push_back(sums.back() / static_cast<double>(choice.size()));
        record["choices"].push_back({{"text", choice},
                                     {"log_probability", sums.back()},
                                     {"tokens", score.log_probabilities.size()},
                                     {"context_tokens_cut", score.cut}});
      }
      record["right"] = question.right;
      for (const auto& [name, values] :
           {std::pair("acc", &sums), {"acc_norm", &by_characters}, {"acc_bytes", &by_bytes}}) {
        if (!Wanted(name)) continue;
        const auto largest = std::max_element(values->begin(), values->end());  // the first of equals
        const auto chosen = static_cast<size_t>(largest - values->begin());
        if (std::count(values->begin(), values->end(), *largest) > 1) Note(absl::StrCat("ties in ", name));
        record["chosen"][name] = chosen;
        Count(name, Measure::kShare, {chosen == question.right ? 1.0 : 0.0, 1});
      }
    }
    return absl::OkStatus();
  }

  void Count(const std::string& name, Measure measure, const Term& term) {
    auto metric = std::find_if(result_.metrics.begin(), result_.metrics.end(),
                               [&name](const Metric& known) { return known.name == name; });
    if (metric == result_.metrics.end()) {
      metric = result_.metrics.insert(metric, {name, measure, {}});
    }
    metric->terms.push_back(term);
  }

  // ---- perplexity ----

  absl::Status Predict() {
    MILLRACE_ASSIGN_OR_RETURN(const std::vector<model::ContinuationScore> scores, ScoreAll());
    for (size_t i = 0; i < questions_.size(); ++i) {
      const std::string& target = questions_[i].continuations[0];
      const double sum = Sum(scores[i]);
      const auto words = static_cast<double>(CountWords(target)), bytes = static_cast<double>(target.size());
      Json& record = result_.records[i];
      RecordPrompt(questions_[i], &record);
      record["target"] = target;
      record["log_probability"] = sum;
      record["tokens"] = scores[i].log_probabilities.size();
      record["context_tokens_cut"] = scores[i].cut;
      record["words"] = CountWords(target);
      record["bytes"] = target.size();
      if (Wanted("word_perplexity")) Count("word_perplexity", Measure::kPerplexity, {sum, words});
      if (Wanted("byte_perplexity")) Count("byte_perplexity", Measure::kPerplexity, {sum, bytes});
      if (Wanted("bits_per_byte")) Count("bits_per_byte", Measure::kBitsPerWeight, {sum, bytes});
    }
    return absl::OkStatus();
  }

  // ---- what is generated ----

  struct Generated {
    std::string text;    // before the first stop text
    std::string ending;  // "token", "stop", "max_tokens"
    size_t tokens = 0;   // generated for it, with what ended it
  };

  // `samples` for each question, one question's after another.
  absl::StatusOr<std::vector<Generated>> Generate(uint64_t samples) {
    model::RolloutOptions rollout;
    rollout.sampling = {task_.temperature(), static_cast<int64_t>(task_.top_k()), task_.top_p()};
    rollout.max_tokens = std::min<int64_t>(task_.max_tokens(), model_.context());
    const std::optional<uint32_t> end_of_text = model_.tokenizer().end_of_text();
    if (end_of_text.has_value()) rollout.stop.push_back(*end_of_text);
    if (task_.chat()) {
      MILLRACE_ASSIGN_OR_RETURN(rollout.stop.emplace_back(), text::EndOfTurn(*chat_template_, model_.tokenizer()));
    }
    rollout.ends = [this](absl::Span<const uint32_t> ids) { return EndsWithin(ids); };
    // A sequence holds prompt and answer, the last token of which nothing follows.
    const int64_t room = std::max<int64_t>(1, model_.context() + 1 - rollout.max_tokens);
    const Philox key = Philox(task_.seed()).Derive(kAnswersPurpose);
    std::vector<model::Prompt> prompts;
    int64_t longest = 0;
    for (size_t i = 0; i < questions_.size(); ++i) {
      absl::StatusOr<std::vector<uint32_t>> ids =
          task_.chat() ? EncodeChat(questions_[i]) : model_.EncodeDocument(questions_[i].context);
      if (!ids.ok()) return Annotate(ids.status(), questions_[i].where);
      if (ids->empty()) {
        return absl::InvalidArgumentError(absl::StrCat(
            questions_[i].where, ": an empty prompt, and the tokenizer has no <|endoftext|>: nothing predicts"));
      }
      if (static_cast<int64_t>(ids->size()) > room) {
        Note("contexts cut");
        result_.records[i]["context_tokens_cut"] = static_cast<int64_t>(ids->size()) - room;
        ids->erase(ids->begin(), ids->end() - room);
      }
      longest = std::max(longest, static_cast<int64_t>(ids->size()));
      model::Prompt& prompt = prompts.emplace_back();
      prompt.ids = *std::move(ids);
      for (uint64_t sample = 0; sample < samples; ++sample) prompt.keys.push_back(key.Derive(i).Derive(sample));
    }
    const auto answers_wanted = static_cast<int64_t>(questions_.size() * samples);
    MILLRACE_ASSIGN_OR_RETURN(
        model::Rollouts rollouts,
        model::Rollouts::Create(&model_.network(), &compute_, std::min(kAnswersTogether, answers_wanted),
                                std::min(model_.context(), longest + rollout.max_tokens - 1)));
    MILLRACE_ASSIGN_OR_RETURN(const std::vector<model::Answer> answers,
                              rollouts.Sample(model_.weights(), prompts, rollout));
    std::vector<Generated> all;
    for (const model::Answer& answer : answers) {
      const std::string text = model_.tokenizer().Decode(
          absl::MakeConstSpan(answer.ids).first(answer.ids.size() - (answer.stopped ? 1 : 0)));
      const absl::string_view before = BeforeStop(text, task_.stop());
      const char* const ending = before.size() < text.size() ? "stop" : answer.stopped ? "token" : "max_tokens";
      all.push_back({std::string(before), ending, answer.ids.size()});
    }
    return all;
  }

  // Whether a stop text ends in the last token.
  bool EndsWithin(absl::Span<const uint32_t> ids) const {
    if (task_.stop().empty()) return false;
    size_t longest = 0;
    for (const std::string& stop : task_.stop()) longest = std::max(longest, stop.size());
    size_t from = ids.size() - 1;
    for (size_t bytes = 0; from > 0 && bytes + 1 < longest;) bytes += text_bytes_[ids[--from]];
    const std::string end = model_.tokenizer().Decode(ids.subspan(from));
    return std::any_of(task_.stop().begin(), task_.stop().end(),
                       [&end](const std::string& stop) { return absl::StrContains(end, stop); });
  }

  absl::Status Match() {
    MILLRACE_ASSIGN_OR_RETURN(const AnswerRule rule, AnswerRule::Create(task_));
    MILLRACE_ASSIGN_OR_RETURN(const std::vector<Generated> generated, Generate(1));
    for (size_t i = 0; i < questions_.size(); ++i) {
      Json& record = result_.records[i];
      RecordPrompt(questions_[i], &record);
      const std::string text = text::WellFormed(generated[i].text);
      record["generated"] = text;
      record["tokens"] = generated[i].tokens;
      record["ended_by"] = generated[i].ending;
      const std::optional<std::string> answer = rule.Extract(text);
      bool right = false;
      if (answer.has_value()) {
        const std::string given = rule.Normalize(*answer);
        for (const std::string& one : questions_[i].answers) right = right || given == rule.Normalize(one);
        record["answer"] = given;
      } else {
        Note("answers not found");
        record["answer"] = nullptr;
      }
      record["right_answers"] = questions_[i].answers;
      record["exact_match"] = right;
      if (generated[i].ending == "max_tokens") Note("answers cut at max_tokens");
      Count("exact_match", Measure::kShare, {right ? 1.0 : 0.0, 1});
    }
    return absl::OkStatus();
  }

  // ---- programs ----

  absl::Status Try() {
    std::vector<text::JinjaTemplate> arguments;
    for (const std::string& argument : task_.program()) {
      MILLRACE_ASSIGN_OR_RETURN(text::JinjaTemplate parsed, text::JinjaTemplate::Parse(argument));
      arguments.push_back(std::move(parsed));
    }
    MILLRACE_ASSIGN_OR_RETURN(const text::JinjaTemplate source, text::JinjaTemplate::Parse(task_.source()));
    const uint64_t samples = task_.samples();
    MILLRACE_ASSIGN_OR_RETURN(const std::vector<Generated> generated, Generate(samples));
    for (size_t i = 0; i < questions_.size(); ++i) {
      Json& record = result_.records[i];
      RecordPrompt(questions_[i], &record);
      uint64_t passed = 0;
      for (uint64_t sample = 0; sample < samples; ++sample) {
        const Generated& one = generated[i * samples + sample];
        const std::string text = text::WellFormed(one.text);
        absl::StatusOr<TrialOutcome> outcome = Judge(questions_[i], text, arguments, source);
        if (!outcome.ok()) return Annotate(outcome.status(), questions_[i].where);
        passed += outcome->passed ? 1 : 0;
        record["samples"].push_back({{"generated", text},
                                     {"tokens", one.tokens},
                                     {"ended_by", one.ending},
                                     {"passed", outcome->passed},
                                     {"ending", outcome->ending},
                                     {"output", text::WellFormed(outcome->output)}});
      }
      record["passed"] = passed;
      for (const uint32_t k : task_.pass_at()) {
        const Measure measure = samples == 1 ? Measure::kShare : Measure::kMean;
        Count(absl::StrCat("pass@", k), measure, {PassAtK(samples, passed, k), 1});
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<TrialOutcome> Judge(const Question& question, const std::string& generated,
                                     const std::vector<text::JinjaTemplate>& arguments,
                                     const text::JinjaTemplate& source) const {
    const std::string folder = std::filesystem::absolute(options_.folder.empty() ? "." : options_.folder).string();
    const std::vector<std::pair<std::string, std::string>> more = {
        {"generated", generated}, {"context", question.context}, {"folder", folder}};
    Trial trial;
    for (size_t i = 0; i < arguments.size(); ++i) {
      absl::StatusOr<std::string> argument = RenderTemplate(arguments[i], question.fields, more);
      if (!argument.ok()) return Annotate(argument.status(), absl::StrCat("program.", i));
      trial.arguments.push_back(*std::move(argument));
    }
    trial.arguments[0] = (std::filesystem::path(folder) / trial.arguments[0]).string();
    absl::StatusOr<std::string> text = RenderTemplate(source, question.fields, more);
    if (!text.ok()) return Annotate(text.status(), "source");
    trial.source = *std::move(text);
    trial.file = task_.file();
    trial.time_limit = absl::Seconds(task_.time_limit());
    trial.max_memory = uint64_t{task_.memory_mb()} << 20;
    return RunTrial(trial);
  }

  const v1::TaskSpec& task_;
  const absl::Span<const Question> questions_;
  model::LanguageModel& model_;
  const kernels::Compute& compute_;
  const text::ChatTemplate* const chat_template_;
  const RunOptions& options_;
  const std::vector<uint32_t> text_bytes_;
  TaskResult result_;
};

}  // namespace

absl::Status CheckAllowed(const v1::TaskSpec& task, const RunOptions& options) {
  if (task.type() != "pass_fail" || options.allow_programs) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(
      "task ", task.name(), " runs a program on what the model has generated; --allow-programs allows that"));
}

absl::StatusOr<TaskResult> RunTask(const v1::TaskSpec& task, absl::Span<const Question> questions,
                                   const ModelInUse& model, const RunOptions& options) {
  MILLRACE_RETURN_IF_ERROR(CheckAllowed(task, options));
  absl::StatusOr<TaskResult> result = Runner(task, questions, model, options).Run();
  if (!result.ok()) return Annotate(result.status(), absl::StrCat("task ", task.name()));
  return result;
}

}  // namespace millrace::evaluation
