#include "coordinator/ratings_service.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/ratings_client.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/rating_sets.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::coordinator {
namespace {

using ::testing::HasSubstr;
using testing::RatingOf;
using testing::RatingPairs;
using testing::RatingSetOf;

class RatingsServiceTest : public ::testing::Test {
 protected:
  RatingsServiceTest() : store_(*RatingStore::Open(folder_ / "ratings.sqlite")), service_(store_.get(), "host:8080") {
    GrpcServerOptions options;
    options.listen = "127.0.0.1:0";
    options.services = {&service_};
    server_ = *GrpcServer::Start(options);
    client_ = std::make_unique<client::RatingsClient>(server_->address());
  }

  const text::TemporaryFolder folder_;
  const std::unique_ptr<RatingStore> store_;
  RatingsService service_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<client::RatingsClient> client_;
};

TEST_F(RatingsServiceTest, TakesLargeSetsInPiecesAndExportsThem) {
  std::vector<v1::RatingPair> pairs = RatingPairs(300);
  for (v1::RatingPair& pair : pairs) pair.mutable_a()->append(30000, 'x');
  for (int time = 0; time < 2; ++time) {
    const auto set = client_->CreateRatingSet(RatingSetOf("job/reward", 1), pairs);
    ASSERT_OK(set);
    EXPECT_EQ(set->pairs(), 300u);
  }
  EXPECT_EQ(store_->Pair("job/reward", 299)->SerializeAsString(), pairs[299].SerializeAsString());
  for (uint64_t i = 0; i < 300; ++i) {
    ASSERT_OK(store_->Rate("job/reward", i, RatingOf("ann", i < 299 ? v1::Rating::A : v1::Rating::SKIP)));
  }
  size_t bytes = 0;
  const auto counts = client_->ExportRatings("job/reward", [&bytes](absl::string_view lines) {
    bytes += lines.size();
    return absl::OkStatus();
  });
  ASSERT_OK(counts);
  EXPECT_EQ(counts->examples(), 299u);
  EXPECT_EQ(counts->skipped(), 1u);
  EXPECT_GT(bytes, 299u * 30000);

  const auto list = client_->ListRatingSets();
  ASSERT_OK(list);
  ASSERT_EQ(list->sets_size(), 1);
  EXPECT_EQ(list->sets(0).done(), 300u);
  EXPECT_EQ(list->http_address(), "host:8080");
}

TEST_F(RatingsServiceTest, SaysWhatIsWrong) {
  ASSERT_OK(client_->CreateRatingSet(RatingSetOf("set", 1), RatingPairs(1)));
  const absl::Status other = client_->CreateRatingSet(RatingSetOf("set", 1), RatingPairs(2)).status();
  EXPECT_TRUE(absl::IsAlreadyExists(other)) << other;
  EXPECT_THAT(other.message(), HasSubstr("'set' of 1 pairs"));
  std::vector<v1::RatingPair> pairs = RatingPairs(2);
  pairs[1].set_b("");
  const absl::Status bad = client_->CreateRatingSet(RatingSetOf("bad", 1), pairs).status();
  EXPECT_TRUE(absl::IsInvalidArgument(bad)) << bad;
  EXPECT_THAT(bad.message(), HasSubstr("pair 2: answer b is empty"));
  const absl::Status unknown =
      client_->ExportRatings("none", [](absl::string_view) { return absl::OkStatus(); }).status();
  EXPECT_TRUE(absl::IsNotFound(unknown)) << unknown;
  const auto full = [](absl::string_view) { return absl::ResourceExhaustedError("full"); };
  ASSERT_OK(store_->Rate("set", 0, RatingOf("ann", v1::Rating::A)));
  EXPECT_TRUE(absl::IsResourceExhausted(client_->ExportRatings("set", full).status()));
}

TEST_F(RatingsServiceTest, WantsTheSetInTheFirstMessageAlone) {
  const auto stub = v1::Ratings::NewStub(NewChannel(server_->address()));
  for (const int with_set : {0, 2}) {
    grpc::ClientContext context;
    v1::RatingSet reply;
    const auto writer = stub->CreateRatingSet(&context, &reply);
    for (int i = 0; i < 2; ++i) {
      v1::CreateRatingSetRequest request;
      *request.add_pairs() = testing::RatingPairOf(static_cast<uint64_t>(i));
      if (i < with_set) *request.mutable_set() = RatingSetOf("set", 1);
      writer->Write(request);
    }
    writer->WritesDone();
    EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT) << with_set;
  }
  EXPECT_TRUE(store_->List()->empty());
}

}  // namespace
}  // namespace millrace::coordinator
