// Encoders and what they are pre-trained with, against transformers (tests/golden/make_model_goldens.py), finite
// differences, and what must not change a bit.
#include "model/objectives/masked_lm.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/families/network.h"
#include "model/formats/hugging_face.h"
#include "model/layers/linear.h"
#include "model/objectives/token_scores.h"
#include "model/tiny_models.h"
#include "testing/isas.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kVocab = 37;

// A batch with what it views.
struct OwnedBatch {
  int64_t rows = 0, columns = 0;
  std::vector<uint32_t> ids, starts, types, targets;
  std::vector<int64_t> places;
  std::vector<uint8_t> follows;

  MaskedBatch view() const {
    return {{ids.data(), rows, columns, columns, starts.data(), types.data()}, places, targets, follows};
  }
};

// Rows of these lengths, in rows as long as the longest or `columns`; the second piece begins in the middle of each,
// and every third token is hidden.
OwnedBatch MakeBatch(const std::vector<int64_t>& lengths, uint64_t key, int64_t columns = 0) {
  OwnedBatch batch;
  batch.rows = static_cast<int64_t>(lengths.size());
  batch.columns = columns;
  for (const int64_t length : lengths) batch.columns = std::max(batch.columns, length);
  for (int64_t row = 0; row < batch.rows; ++row) {
    const int64_t length = lengths[static_cast<size_t>(row)];
    for (int64_t column = 0; column < batch.columns; ++column) {
      const bool real = column < length;
      const auto drawn = Philox(key)(static_cast<uint64_t>(length), static_cast<uint64_t>(column));
      batch.ids.push_back(real ? drawn[0] % kVocab : 0);
      batch.starts.push_back(real ? 0 : static_cast<uint32_t>(length));
      batch.types.push_back(real && 2 * column >= length ? 1 : 0);
      if (!real || column % 3 != 1) continue;
      batch.places.push_back(row * batch.columns + column);
      batch.targets.push_back(drawn[1] % kVocab);
    }
    batch.follows.push_back(row % 2 == 0 ? 1 : 0);
  }
  return batch;
}

struct Course {
  double loss = 0;
  std::vector<float> gradients;
  MaskedAnswers answers;
  std::vector<uint32_t> needed, final;
};

Course Train(const Network& network, const kernels::Compute& compute, const std::vector<float>& weights,
             const OwnedBatch& batch, const Philox* key, Trainable trainable = nullptr) {
  MaskedLm objective =
      *MaskedLm::Create(&network, &compute, batch.rows * batch.columns, batch.columns, /*for_training=*/true);
  Course course;
  course.gradients.resize(weights.size(), 0.0f);
  const auto loss = objective.Gradients(
      weights.data(), batch.view(), {key}, 0.25f,
      [&](uint32_t group) {
        course.needed.push_back(group);
        return absl::OkStatus();
      },
      course.gradients.data(),
      [&](uint32_t group) {
        course.final.push_back(group);
        return absl::OkStatus();
      },
      trainable, &course.answers);
  EXPECT_OK(loss);
  course.loss = *loss;
  return course;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// ---- transformers ----

template <typename T>
std::vector<T> Answer(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsEntry* const entry = file.header().Find(name);
  if (entry == nullptr) {
    ADD_FAILURE() << name;
    return {};
  }
  const absl::string_view bytes = file.bytes(*entry);
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

struct Golden {
  std::unique_ptr<Network> network;
  std::vector<float> weights;
  std::unique_ptr<SafetensorsFile> answers;
  std::vector<int64_t> lengths;
  OwnedBatch batch;
};

Golden LoadGolden() {
  const std::string folder = std::string(MILLRACE_SOURCE_DIR) + "/tests/golden/model/bert";
  Golden golden;
  const absl::StatusOr<Configuration> configuration = ReadConfig(folder);
  EXPECT_OK(configuration);
  golden.network = NewNetwork(configuration->spec, configuration->vocab_size);
  golden.weights.resize(static_cast<size_t>(golden.network->tensors().floats()));
  EXPECT_OK(ReadWeights(folder, golden.network->tensors(), golden.weights.data()));
  golden.answers = *SafetensorsFile::Open(folder + "/answers.safetensors");
  golden.lengths = Answer<int64_t>(*golden.answers, "lengths");
  OwnedBatch& batch = golden.batch;
  batch.rows = static_cast<int64_t>(golden.lengths.size());
  const auto tokens = Answer<int64_t>(*golden.answers, "tokens"), types = Answer<int64_t>(*golden.answers, "types"),
             targets = Answer<int64_t>(*golden.answers, "targets");
  batch.columns = static_cast<int64_t>(tokens.size()) / batch.rows;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const int64_t row = static_cast<int64_t>(i) / batch.columns, column = static_cast<int64_t>(i) % batch.columns;
    const int64_t length = golden.lengths[static_cast<size_t>(row)];
    batch.ids.push_back(static_cast<uint32_t>(tokens[i]));
    batch.types.push_back(static_cast<uint32_t>(types[i]));
    batch.starts.push_back(column < length ? 0 : static_cast<uint32_t>(length));
    if (targets[i] < 0) continue;
    batch.places.push_back(static_cast<int64_t>(i));
    batch.targets.push_back(static_cast<uint32_t>(targets[i]));
  }
  for (const int64_t follows : Answer<int64_t>(*golden.answers, "follows")) {
    batch.follows.push_back(static_cast<uint8_t>(follows));
  }
  return golden;
}

TEST(GoldenBert, OutputsLossesAndGradientsAreThoseOfTransformers) {
  const Golden golden = LoadGolden();
  const kernels::Compute compute(kernels::DetectIsa(), 2);
  const Network& network = *golden.network;
  const OwnedBatch& batch = golden.batch;

  const auto memory = *network.NewMemory(batch.rows * batch.columns, batch.columns, /*for_training=*/false);
  const absl::StatusOr<const float*> outputs =
      network.Forward(compute, golden.weights.data(), batch.view().tokens, {}, &NothingToWaitFor, memory.get());
  ASSERT_OK(outputs);
  const auto expected = Answer<float>(*golden.answers, "outputs");
  const int64_t hidden = network.hidden_size();
  for (int64_t i = 0; i < batch.rows * batch.columns; ++i) {
    // transformers lets padding see the text; nobody looks at what comes of it.
    if (batch.starts[static_cast<size_t>(i)] != 0) continue;
    for (int64_t c = i * hidden; c < (i + 1) * hidden; ++c) {
      EXPECT_NEAR((*outputs)[c], expected[static_cast<size_t>(c)], 2e-5) << c;
    }
  }

  MaskedLm objective = *MaskedLm::Create(&network, &compute, batch.rows * batch.columns, batch.columns, true);
  MaskedAnswers answers;
  std::vector<float> gradients(golden.weights.size(), 0.0f);
  const absl::StatusOr<double> loss =
      objective.Gradients(golden.weights.data(), batch.view(), {}, 1.0f, &NothingToWaitFor, gradients.data(),
                          &NothingToWaitFor, nullptr, &answers);
  ASSERT_OK(loss);
  EXPECT_NEAR(*loss, Answer<double>(*golden.answers, "loss")[0], 1e-4);
  const auto losses = Answer<double>(*golden.answers, "losses");
  const auto logits = Answer<float>(*golden.answers, "logits");
  for (size_t i = 0; i < batch.places.size(); ++i) {
    const auto place = static_cast<size_t>(batch.places[i]);
    EXPECT_NEAR(answers.losses[i], losses[place], 2e-5) << i;
    const float* const row = logits.data() + place * network.vocab_size();
    EXPECT_EQ(answers.right[i], std::max_element(row, row + network.vocab_size()) - row == batch.targets[i]) << i;
  }
  const auto pair_losses = Answer<double>(*golden.answers, "pair_losses");
  const auto pair_logits = Answer<float>(*golden.answers, "pair_logits");
  for (size_t row = 0; row < pair_losses.size(); ++row) {
    EXPECT_NEAR(answers.next_sentence_losses[row], pair_losses[row], 2e-5) << row;
    EXPECT_EQ(answers.next_sentence_right[row],
              (pair_logits[2 * row] > pair_logits[2 * row + 1]) == (batch.follows[row] == 1))
        << row;
  }
  for (const TensorSpec& spec : network.tensors().tensors()) {
    const auto of_tensor = Answer<float>(*golden.answers, "gradient." + spec.name);
    ASSERT_EQ(static_cast<int64_t>(of_tensor.size()), spec.size) << spec.name;
    for (size_t i = 0; i < of_tensor.size(); ++i) {
      EXPECT_NEAR(gradients[static_cast<size_t>(spec.offset) + i], of_tensor[i], 5e-5 * (1 + std::fabs(of_tensor[i])))
          << spec.name << " " << i;
    }
  }
}

// Older versions of transformers store what is tied, too.
TEST(GoldenBert, AnOutputProjectionThatIsStoredMustBeTheEmbedding) {
  const std::string golden = std::string(MILLRACE_SOURCE_DIR) + "/tests/golden/model/bert";
  const auto file = *SafetensorsFile::Open(golden + "/model.safetensors");
  text::TemporaryFolder folder;
  for (const bool differs : {false, true}) {
    SafetensorsHeader header;
    header.tensors = file->header().tensors;
    std::string data;
    for (const SafetensorsEntry& entry : header.tensors) absl::StrAppend(&data, file->bytes(entry));
    SafetensorsEntry head = *header.Find("bert.embeddings.word_embeddings.weight");
    std::string of_head(file->bytes(head));
    if (differs) of_head[1] = static_cast<char>(of_head[1] ^ 1);
    head.name = "cls.predictions.decoder.weight";
    header.tensors.push_back(head);
    SafetensorsEntry bias = *header.Find("cls.predictions.bias");
    bias.name = "cls.predictions.decoder.bias";
    header.tensors.push_back(bias);
    absl::StrAppend(&data, of_head, file->bytes(*file->header().Find("cls.predictions.bias")));
    const std::string start = LayOutSafetensors(&header);
    folder.Write("model.safetensors", start + data);
    const Golden plain = LoadGolden();
    std::vector<float> weights(plain.weights.size());
    const absl::Status read = ReadWeights(folder.path(), plain.network->tensors(), weights.data());
    EXPECT_EQ(read.ok(), !differs) << read;
    if (differs) {
      EXPECT_THAT(read.message(), HasSubstr("tensor 'cls.predictions.decoder.weight' differs from the embedding"));
    } else {
      EXPECT_EQ(weights, plain.weights);
    }
  }
}

// ---- gradients and bits ----

class MaskedLmTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Network> New(double dropout = 0) const {
    v1::ModelSpec spec = TinySpec("bert", GetParam());
    spec.set_dropout(dropout);
    return NewNetwork(spec, kVocab);
  }
  const kernels::Compute compute_{kernels::DetectIsa(), 2};
};
INSTANTIATE_TEST_SUITE_P(Precisions, MaskedLmTest, ::testing::Values("f32", "bf16"),
                         [](const auto& info) { return info.param; });

TEST_P(MaskedLmTest, GradientsAreFiniteDifferences) {
  // What dropout drops is the same in every pass of a key, so that its gradient is one, too.
  if (GetParam() != "f32") return;
  const std::unique_ptr<Network> network = New(/*dropout=*/0.2);
  std::vector<float> weights = RandomWeights(network->tensors(), 1);
  const OwnedBatch batch = MakeBatch({9, 6}, 2);
  const Philox key(3);
  const Course course = Train(*network, compute_, weights, batch, &key);
  for (int t = 0; t < network->tensors().size(); ++t) {
    const TensorSpec& tensor = network->tensors()[t];
    // Along the gradient of each tensor the loss rises by its squared norm.
    double squares = 0;
    for (int64_t i = 0; i < tensor.size; ++i) {
      squares += std::pow(course.gradients[static_cast<size_t>(tensor.offset + i)], 2);
    }
    if (tensor.name.find("self.key.bias") != std::string::npos) {
      // What is added to all keys adds the same to all scores of a query, which softmax does not see.
      EXPECT_LT(squares, 1e-10) << tensor.name;
      continue;
    }
    ASSERT_GT(squares, 1e-6) << tensor.name;
    const double step = 3e-3 / std::sqrt(squares);
    double losses[2];
    for (const int side : {0, 1}) {
      std::vector<float> moved = weights;
      for (int64_t i = 0; i < tensor.size; ++i) {
        const auto at = static_cast<size_t>(tensor.offset + i);
        moved[at] += static_cast<float>((side == 0 ? -step : step) * static_cast<double>(course.gradients[at]));
      }
      losses[side] = Train(*network, compute_, moved, batch, &key).loss;
    }
    const double slope = (losses[1] - losses[0]) / (2 * step) * 0.25;  // the gradients' scale
    EXPECT_NEAR(slope / squares, 1, 0.02) << tensor.name;
  }
}

TEST_P(MaskedLmTest, BitsDependOnNeitherThreadsNorInstructionSet) {
  const std::unique_ptr<Network> network = New(/*dropout=*/0.1);
  const std::vector<float> weights = RandomWeights(network->tensors(), 1);
  const OwnedBatch batch = MakeBatch({71, 40, 8}, 2);
  const Philox key(3);
  const kernels::Compute scalar(kernels::Isa::kScalar, 1);
  const Course expected = Train(*network, scalar, weights, batch, &key);
  for (const kernels::Isa isa : testing::IsasHere()) {
    for (const int threads : {1, 3}) {
      const Course course = Train(*network, kernels::Compute(isa, threads), weights, batch, &key);
      EXPECT_EQ(course.loss, expected.loss) << kernels::IsaName(isa) << " " << threads;
      EXPECT_TRUE(SameBits(course.gradients, expected.gradients)) << kernels::IsaName(isa) << " " << threads;
    }
  }
  const Philox other_key(4);
  EXPECT_NE(Train(*network, scalar, weights, batch, &other_key).loss, expected.loss);
}

TEST_P(MaskedLmTest, PaddingAndOtherRowsChangeNoBitOfARow) {
  const std::unique_ptr<Network> network = New();
  const std::vector<float> weights = RandomWeights(network->tensors(), 1);
  const Course alone = Train(*network, compute_, weights, MakeBatch({20}, 2), nullptr);
  const Course padded = Train(*network, compute_, weights, MakeBatch({20}, 2, /*columns=*/75), nullptr);
  const Course beside = Train(*network, compute_, weights, MakeBatch({20, 33}, 2), nullptr);
  EXPECT_TRUE(SameBits(padded.answers.losses, alone.answers.losses));
  EXPECT_TRUE(SameBits(padded.answers.next_sentence_losses, alone.answers.next_sentence_losses));
  EXPECT_EQ(padded.loss, alone.loss);
  EXPECT_EQ(0, std::memcmp(beside.answers.losses.data(), alone.answers.losses.data(),
                           alone.answers.losses.size() * sizeof(float)));
}

TEST_P(MaskedLmTest, ATokenSeesTheWholeRow) {
  const std::unique_ptr<Network> network = New();
  const std::vector<float> weights = RandomWeights(network->tensors(), 1);
  OwnedBatch batch = MakeBatch({70}, 2);
  const Course before = Train(*network, compute_, weights, batch, nullptr);
  batch.ids.back() = (batch.ids.back() + 1) % kVocab;
  const Course behind = Train(*network, compute_, weights, batch, nullptr);
  EXPECT_NE(before.answers.losses.front(), behind.answers.losses.front());
  batch.types.back() = 0;
  EXPECT_NE(Train(*network, compute_, weights, batch, nullptr).answers.losses.front(), behind.answers.losses.front());
}

TEST_P(MaskedLmTest, GroupsAreNeededInOrderAndFinalInReverse) {
  const std::unique_ptr<Network> network = New();
  const Course course = Train(*network, compute_, RandomWeights(network->tensors(), 1), MakeBatch({12, 7}, 2), nullptr);
  EXPECT_THAT(course.needed, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(course.final, ElementsAre(3, 2, 1, 0));
}

TEST_P(MaskedLmTest, FrozenTensorsChangeNoBitOfTheOthersGradients) {
  const std::unique_ptr<Network> network = New(/*dropout=*/0.1);
  const std::vector<float> weights = RandomWeights(network->tensors(), 1);
  const OwnedBatch batch = MakeBatch({12, 7}, 2);
  const Philox key(3);
  const Course all = Train(*network, compute_, weights, batch, &key);
  const int count = network->tensors().size();
  for (int lowest = 0; lowest < count; ++lowest) {
    std::vector<bool> trainable(static_cast<size_t>(count), true);
    std::fill_n(trainable.begin(), lowest, false);
    const Course some = Train(*network, compute_, weights, batch, &key, &trainable);
    EXPECT_EQ(some.loss, all.loss);
    for (int i = 0; i < count; ++i) {
      const TensorSpec& tensor = network->tensors()[i];
      const auto begin = static_cast<size_t>(tensor.offset);
      for (size_t at = begin; at < begin + static_cast<size_t>(tensor.size); ++at) {
        ASSERT_EQ(some.gradients[at], i < lowest ? 0.0f : all.gradients[at]) << tensor.name << " from " << lowest;
      }
    }
  }
}

TEST_P(MaskedLmTest, WithoutPairsTheirHeadLearnsNothing) {
  const std::unique_ptr<Network> network = New();
  OwnedBatch batch = MakeBatch({12, 7}, 2);
  batch.follows.clear();
  const Course course = Train(*network, compute_, RandomWeights(network->tensors(), 1), batch, nullptr);
  EXPECT_TRUE(course.answers.next_sentence_losses.empty());
  for (const TensorSpec& tensor : network->tensors().tensors()) {
    bool any = false;
    for (int64_t i = 0; i < tensor.size; ++i) any |= course.gradients[static_cast<size_t>(tensor.offset + i)] != 0;
    const bool of_pairs =
        tensor.name.find("pooler") != std::string::npos || tensor.name.find("seq_relationship") != std::string::npos;
    EXPECT_EQ(any, !of_pairs) << tensor.name;
  }
}

// ---- what is refused ----

TEST(Encoders, RefuseWhatTheyAreNotFor) {
  const kernels::Compute compute(kernels::DetectIsa(), 1);
  const std::unique_ptr<Network> network = NewNetwork(TinySpec("bert"), kVocab);
  EXPECT_FALSE(network->extends());
  EXPECT_THAT(network->NewCache().status().message(), HasSubstr("does not continue text"));
  EXPECT_FALSE(TokenScores::Create(network.get(), &compute, 10, 10, false).ok());
  const std::unique_ptr<Network> decoder = NewNetwork(TinySpec("gpt2"), kVocab);
  EXPECT_TRUE(decoder->extends());
  EXPECT_THAT(MaskedLm::Create(decoder.get(), &compute, 10, 10, false).status().message(), HasSubstr("no encoder"));
  EXPECT_THAT(CreateNetwork(TinySpec("bert"), kVocab, Head::kScalar).status().message(), HasSubstr("no scalar head"));
  v1::ModelSpec untied = TinySpec("bert");
  untied.set_tied_embeddings(false);
  EXPECT_THAT(CreateNetwork(untied, kVocab).status().message(), HasSubstr("tied_embeddings"));
}

TEST(Encoders, RefuseBatchesThatCannotBe) {
  const kernels::Compute compute(kernels::DetectIsa(), 1);
  const std::unique_ptr<Network> network = NewNetwork(TinySpec("bert"), kVocab);
  const std::vector<float> weights = RandomWeights(network->tensors(), 1);
  MaskedLm objective = *MaskedLm::Create(network.get(), &compute, 20, 10, /*for_training=*/false);
  const auto message = [&](const OwnedBatch& batch) {
    const auto loss = objective.Loss(weights.data(), batch.view(), &NothingToWaitFor, nullptr);
    EXPECT_EQ(loss.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(loss.status().message());
  };
  OwnedBatch batch = MakeBatch({10, 5}, 2);
  EXPECT_OK(objective.Loss(weights.data(), batch.view(), &NothingToWaitFor, nullptr));
  const OwnedBatch good = batch;
  batch.ids[3] = kVocab;
  EXPECT_THAT(message(batch), HasSubstr("token id 37"));
  batch = good;
  batch.targets[0] = kVocab;
  EXPECT_THAT(message(batch), HasSubstr("token id 37"));
  batch = good;
  batch.places.back() = 20;
  EXPECT_THAT(message(batch), HasSubstr("place 20 of 20"));
  batch = good;
  batch.places[1] = batch.places[0];
  EXPECT_THAT(message(batch), HasSubstr("not behind the one before"));
  batch = good;
  batch.types[3] = 2;
  EXPECT_THAT(message(batch), HasSubstr("type 2"));
  batch = good;
  batch.follows.pop_back();
  EXPECT_THAT(message(batch), HasSubstr("1 answers"));
  batch = good;
  batch.places.clear();
  batch.targets.clear();
  batch.follows.clear();
  EXPECT_THAT(message(batch), HasSubstr("nothing is hidden"));
  EXPECT_THAT(message(MakeBatch({11}, 2)), HasSubstr("memory for 20 tokens"));
}

}  // namespace
}  // namespace millrace::model
