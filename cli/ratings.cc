// millrace ratings list, import, export: pairs of answers that people compare on the coordinator's rating page.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/page_address.h"
#include "client/ratings_client.h"
#include "common/message_json.h"
#include "common/status.h"
#include "coordinator/rating_json.h"
#include "coordinator/rating_store.h"
#include "text/corpus.h"
#include "text/new_file.h"

namespace millrace::cli {
namespace {

absl::Status TellPage(const Endpoint& coordinator) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string page, PageAddress(coordinator));
  if (page.empty()) {
    std::printf("No page is served: start the coordinator with --http HOST:PORT.\n");
  } else {
    std::printf("Rate at %srate\n", page.c_str());
  }
  return absl::OkStatus();
}

absl::Status RunRatingsList(Arguments arguments) {
  bool json = false;
  CoordinatorFlags where;
  Flags flags("ratings list", "Lists the rating sets, how far they are, and where the page is.", "--json");
  flags.Switch("json", "prints an object", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  MILLRACE_ASSIGN_OR_RETURN(const v1::ListRatingSetsReply reply, client::RatingsClient(address).ListRatingSets());
  if (json) {
    std::printf("%s\n", ToJson(reply).dump(2).c_str());
    return absl::OkStatus();
  }
  int width = 3;
  for (const v1::RatingSet& set : reply.sets()) width = std::max(width, static_cast<int>(set.id().size()));
  std::printf("%-*s  %15s  %8s  %8s  %s\n", width, "SET", "DONE", "RATERS", "RATINGS", "TITLE");
  for (const v1::RatingSet& set : reply.sets()) {
    const std::string done = absl::StrFormat("%d/%d", set.done(), set.pairs());
    std::printf("%-*s  %15s  %8u  %8s  %s\n", width, set.id().c_str(), done.c_str(), set.raters(),
                absl::StrCat(set.ratings()).c_str(), set.title().c_str());
  }
  return TellPage(address);
}

// All lines, or the first thing that is wrong, with file and line.
absl::StatusOr<std::vector<v1::RatingPair>> ReadPairs(const std::string& path) {
  std::vector<v1::RatingPair> pairs;
  std::string skipped;
  const auto line = [&](absl::string_view text, uint64_t number) -> absl::Status {
    absl::StatusOr<v1::RatingPair> pair = coordinator::ParseRatingPair(text);
    if (!pair.ok()) return Annotate(pair.status(), absl::StrCat(path, ":", number));
    if (pairs.size() == coordinator::kMaxRatingPairs) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": more than ", coordinator::kMaxRatingPairs,
                                                     " pairs; make two sets of them"));
    }
    pairs.push_back(*std::move(pair));
    return absl::OkStatus();
  };
  const text::SourceFile file{
      .path = path, .shown = path, .format = text::Format::kJsonLines, .explicitly_named = true};
  MILLRACE_RETURN_IF_ERROR(text::ReadLines(file, line, [&skipped](std::string why) {
    if (skipped.empty()) skipped = std::move(why);
  }));
  if (!skipped.empty()) return absl::InvalidArgumentError(skipped);
  return pairs;
}

absl::Status RunRatingsImport(Arguments arguments) {
  std::string path;
  v1::RatingSet set;
  int64_t raters = 1;
  set.set_title("Which answer is better?");
  CoordinatorFlags where;
  Flags flags("ratings import", "Makes a rating set of pairs. The same file under the same name again is no error.",
              "tone --file pairs.jsonl --raters 2 --title \"Which answer is kinder?\"");
  flags.Positional("SET", "name of the set", set.mutable_id()).Required();
  flags
      .Text("file", "PAIRS.jsonl",
            "lines of {\"prompt\", \"a\", \"b\"} and, where wanted, \"source_a\" and \"source_b\"; may end in .gz or "
            ".zst",
            &path)
      .Required();
  flags.Integer("raters", "N", "people who are to rate each pair", &raters, 1, coordinator::kMaxRatersAPair);
  flags.Text("title", "T", "what raters are asked", set.mutable_title());
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_RETURN_IF_ERROR(coordinator::CheckRatingSetId(set.id()));
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<v1::RatingPair> pairs, ReadPairs(path));
  set.set_raters(static_cast<uint32_t>(raters));
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  MILLRACE_ASSIGN_OR_RETURN(const v1::RatingSet stored, client::RatingsClient(address).CreateRatingSet(set, pairs));
  std::printf("%s: %s pairs, %s of them done\n", stored.id().c_str(), absl::StrCat(stored.pairs()).c_str(),
              absl::StrCat(stored.done()).c_str());
  return TellPage(address);
}

absl::Status RunRatingsExport(Arguments arguments) {
  std::string set_id, out;
  bool json = false;
  CoordinatorFlags where;
  Flags flags("ratings export", "Writes what raters decided as examples for a reward model, and counts the rest.",
              "tone --out tone.jsonl");
  flags.Positional("SET", "name of the set, as `millrace ratings list` has it", &set_id).Required();
  flags.Text("out", "FILE", "file to write; default: standard output, with the counts on standard error", &out);
  flags.Switch("json", "prints the counts as an object", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  std::unique_ptr<text::NewFile> file;
  const auto sink = [&](absl::string_view lines) -> absl::Status {
    if (file != nullptr) return file->Append(lines);
    std::fwrite(lines.data(), 1, lines.size(), stdout);
    return absl::OkStatus();
  };
  if (!out.empty()) {
    MILLRACE_ASSIGN_OR_RETURN(file, text::NewFile::Create(out));
  }
  MILLRACE_ASSIGN_OR_RETURN(const v1::ExportCounts counts, client::RatingsClient(address).ExportRatings(set_id, sink));
  if (file != nullptr) MILLRACE_RETURN_IF_ERROR(file->Commit());
  const std::string told = json ? ToJson(counts).dump(2)
                                : absl::StrCat(set_id, ": ", counts.examples(), " examples, ", counts.ties(),
                                               " of them ties; left out: ", counts.unrated(), " not rated yet, ",
                                               counts.skipped(), " skipped by all, ", counts.flagged(), " flagged");
  std::fprintf(out.empty() ? stderr : stdout, "%s\n", told.c_str());
  return absl::OkStatus();
}

constexpr char kHelp[] =
    "Pairs of answers that people compare on the coordinator's page (docs/ratings.md).\n\n"
    "  millrace ratings list                         lists the sets, and says where the page is\n"
    "  millrace ratings import SET --file PAIRS      makes a set of pairs\n"
    "  millrace ratings export SET --out FILE        writes what raters decided as examples\n\n"
    "`millrace ratings list --help`, … say more.\n\n"
    "Example:\n  millrace ratings import tone --file pairs.jsonl --raters 2\n";

}  // namespace

absl::Status RunRatings(Arguments arguments) {
  static constexpr CommandGroup::Part kParts[] = {
      {"list", RunRatingsList}, {"import", RunRatingsImport}, {"export", RunRatingsExport}};
  return RunGroup(
      {"ratings", kParts, "list, import and export", "`millrace ratings list`, `import` or `export`", kHelp},
      arguments);
}

}  // namespace millrace::cli
