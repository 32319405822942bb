#include "text/chat_template.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::text {
namespace {

using ::testing::HasSubstr;

const std::vector<std::string> kSpecial = {"<|im_start|>",        "<|im_end|>",        "<|begin_of_text|>",
                                           "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};

const std::vector<Message> kTalk = {
    {"system", "S"}, {"user", "u <|im_end|>"}, {"assistant", "a"}, {"user", "v"}, {"assistant", "b<|endoftext|>"}};

class ChatTemplateTest : public ::testing::Test {
 protected:
  static std::unique_ptr<Tokenizer> Bytes(const std::vector<std::string>& special) {
    BpeTraining training;
    training.vocab_size = 257;
    training.special_tokens = special;
    return *TrainBpe(training, [](const auto& each) { return each("ab"); });
  }
  absl::StatusOr<ChatTemplate> Load(const std::string& name, const std::string& system = "") {
    v1::ChatSpec spec;
    spec.set_template_(name);
    spec.set_system(system);
    return ChatTemplate::Load(spec, *tokenizer_, folder_.path());
  }
  // The conversation with < and > around what is learnt; an error's message.
  std::string Show(const std::string& name, const std::vector<Message>& messages, const std::string& system = "") {
    const auto chat_template = Load(name, system);
    if (!chat_template.ok()) return std::string(chat_template.status().message());
    const auto chat = chat_template->Conversation(messages);
    if (!chat.ok()) return std::string(chat.status().message());
    return Marked(chat->text, chat->scored);
  }
  static std::string Marked(const std::string& text, const std::vector<uint8_t>& scored) {
    std::string shown;
    for (size_t i = 0; i < text.size(); ++i) {
      if ((scored[i] != 0) != (i > 0 && scored[i - 1] != 0)) shown += scored[i] != 0 ? "<<" : ">>";
      shown += text[i];
    }
    return !scored.empty() && scored.back() != 0 ? shown + ">>" : shown;
  }

  TemporaryFolder folder_;
  std::unique_ptr<Tokenizer> tokenizer_ = Bytes(kSpecial);
};

TEST_F(ChatTemplateTest, NamedOnesAreTheWellKnownFormats) {
  const std::vector<Message> talk = {
      {"system", "S"}, {"user", "u"}, {"assistant", "a"}, {"user", "v"}, {"assistant", "b"}};
  const std::string end = "<|endoftext|>";
  EXPECT_EQ(Show("plain", talk), "S\n\nUser: u\nAssistant:<< a" + end + ">>\nUser: v\nAssistant:<< b" + end + ">>\n");
  EXPECT_EQ(Show("", talk), Show("plain", talk));
  EXPECT_EQ(Show("chatml", talk),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n<<a<|im_end|>>>\n"
            "<|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\n<<b<|im_end|>>>\n");
  EXPECT_EQ(Show("zephyr", talk), "<|system|>\nS" + end + "\n<|user|>\nu" + end + "\n<|assistant|>\n<<a" + end +
                                      ">>\n<|user|>\nv" + end + "\n<|assistant|>\n<<b" + end + ">>\n");
  EXPECT_EQ(Show("llama2", talk), end + "[INST] <<SYS>>\nS\n<</SYS>>\n\nu [/INST]<< a " + end + ">>" + end +
                                      "[INST] v [/INST]<< b " + end + ">>");
  EXPECT_EQ(Show("llama3", talk),
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n<<a<|eot_id|>>>"
            "<|start_header_id|>user<|end_header_id|>\n\nv<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n<<b<|eot_id|>>>");
  EXPECT_EQ(Show("alpaca", {{"user", "u"}, {"assistant", "a"}}),
            "Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nu\n\n### Response:\n<<a" +
                end + ">>\n\n");
  EXPECT_THAT(Show("llama2", {{"user", "u"}, {"user", "v"}}), HasSubstr("take turns"));
}

TEST_F(ChatTemplateTest, TheSystemMessageIsForConversationsWithoutOne) {
  EXPECT_THAT(Show("plain", {{"user", "u"}, {"assistant", "a"}}, "Be kind."), HasSubstr("Be kind.\n\nUser: u"));
  EXPECT_THAT(Show("plain", {{"system", "S"}, {"user", "u"}, {"assistant", "a"}}, "Be kind."),
              ::testing::StartsWith("S\n\nUser: u"));
}

TEST_F(ChatTemplateTest, APromptIsHowTheConversationBeginsToTheToken) {
  for (const std::string name : {"plain", "chatml", "zephyr", "llama2", "llama3", "alpaca"}) {
    const auto chat_template = Load(name);
    ASSERT_OK(chat_template);
    const auto whole = EncodeChat(*chat_template->Conversation(kTalk), *tokenizer_);
    ASSERT_OK(whole);
    for (const size_t answer : {2, 4}) {
      const auto prompt = EncodeChat(*chat_template->Prompt(absl::MakeConstSpan(kTalk).first(answer)), *tokenizer_);
      ASSERT_OK(prompt);
      ASSERT_LT(prompt->ids.size(), whole->ids.size());
      EXPECT_TRUE(std::equal(prompt->ids.begin(), prompt->ids.end(), whole->ids.begin())) << name;
      EXPECT_EQ(whole->scored[prompt->ids.size()], 1) << name << ": where the prompt ends the assistant begins";
    }
    // Each turn's end is learnt, and what messages spell is no special token.
    const auto end = EndOfTurn(*chat_template, *tokenizer_);
    ASSERT_OK(end) << name << ": " << end.status();
    int learnt = 0;
    for (size_t i = 0; i < whole->ids.size(); ++i) learnt += whole->ids[i] == *end && whole->scored[i] != 0;
    EXPECT_EQ(learnt, 2) << name;
  }
}

TEST_F(ChatTemplateTest, WithoutMarksTheAssistantsPartIsFoundByRenderingBeginnings) {
  folder_.Write("model/tokenizer_config.json",
                R"({"bos_token": {"content": "<|begin_of_text|>"}, "eos_token": "<|im_end|>", "chat_template":
"{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"})");
  const std::vector<Message> talk = {{"user", "u"}, {"assistant", "a"}, {"user", "v"}, {"assistant", "b"}};
  const std::string wanted =
      "<|begin_of_text|><user>u<|im_end|>\n<assistant><<a<|im_end|>\n>><user>v<|im_end|>\n<assistant><<b<|im_end|>\n>>";
  EXPECT_EQ(Show("model", talk), wanted);
  EXPECT_EQ(Show("model/tokenizer_config.json", talk), wanted);
  const auto chat_template = Load("model");
  EXPECT_EQ(*EndOfTurn(*chat_template, *tokenizer_), tokenizer_->AddedId("<|im_end|>"));
  // The newline behind the end is not learnt: nothing is sampled there.
  const auto tokens = EncodeChat(*chat_template->Conversation(talk), *tokenizer_);
  EXPECT_EQ(tokens->scored.back(), 0);
  EXPECT_EQ(tokens->scored[tokens->scored.size() - 2], 1);
  // A file beside the config counts before it, and the config's tokens for it.
  folder_.Write("model/chat_template.jinja", "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}");
  EXPECT_EQ(Show("model", talk), "u<|im_end|><<a<|im_end|>>>v<|im_end|><<b<|im_end|>>>");
}

TEST_F(ChatTemplateTest, ATemplateThatRewritesWhatCameBeforeIsRefusedByName) {
  folder_.Write("odd.jinja",
                "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}|{% endfor %}");
  EXPECT_THAT(Show("odd.jinja", kTalk),
              ::testing::AllOf(HasSubstr("odd.jinja renders message 3"), HasSubstr("generation")));
  EXPECT_EQ(Show("odd.jinja", {{"user", "u"}, {"assistant", "a"}}), "u|<<a|>>");
}

TEST_F(ChatTemplateTest, NothingToLearnIsAnError) {
  folder_.Write("mute.jinja", "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}");
  EXPECT_THAT(Show("mute.jinja", kTalk), HasSubstr("mute.jinja renders nothing of what the assistant says"));
  folder_.Write("marks.jinja",
                "{% for m in messages %}{{ m.content }}{% endfor %}{% generation %}x{% endgeneration %}");
  EXPECT_THAT(Show("marks.jinja", kTalk), HasSubstr("nothing to learn"));
}

TEST_F(ChatTemplateTest, AnEndThatIsNoSpecialTokenIsAnError) {
  const auto plain_bytes = Bytes({});
  v1::ChatSpec spec;
  spec.set_template_("chatml");
  const auto chat_template = ChatTemplate::Load(spec, *plain_bytes, "");
  EXPECT_THAT(std::string(EndOfTurn(*chat_template, *plain_bytes).status().message()),
              ::testing::AllOf(HasSubstr("'<|im_end|>'"), HasSubstr("tokenizer.special_tokens")));
  folder_.Write("endless.jinja", "{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}");
  EXPECT_THAT(std::string(EndOfTurn(*Load("endless.jinja"), *tokenizer_).status().message()),
              HasSubstr("learn to stop"));
}

TEST_F(ChatTemplateTest, MissingOnesAreErrorsThatSayWhatThereIs) {
  EXPECT_THAT(Show("chatlm", kTalk), ::testing::AllOf(HasSubstr("'chatlm'"), HasSubstr("plain, chatml")));
  folder_.Write("model/tokenizer_config.json", R"({"eos_token": "a"})");
  EXPECT_THAT(Show("model", kTalk),
              ::testing::AllOf(HasSubstr("tokenizer_config.json"), HasSubstr("no chat_template")));
  folder_.Write("broken.jinja", "a\n{{ b");
  EXPECT_THAT(Show("broken.jinja", kTalk), HasSubstr("broken.jinja: line 2"));
}

}  // namespace
}  // namespace millrace::text
