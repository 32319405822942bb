#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gumbo.h"
#include "text/markup.h"

namespace millrace::text {
namespace {

// Memory for one parse, freed as a whole: gumbo's own way of freeing recurses as deep as the page nests.
class Arena {
 public:
  static void* Allocate(void* arena, size_t size) { return static_cast<Arena*>(arena)->Take(size); }
  static void Free(void*, void*) {}

 private:
  static constexpr size_t kPiece = 1 << 16;

  void* Take(size_t size) {
    size = (size + 15) & ~size_t{15};
    if (size > kPiece / 4) {
      large_.push_back(std::make_unique<std::max_align_t[]>(size / sizeof(std::max_align_t) + 1));
      return large_.back().get();
    }
    if (size > left_) {
      pieces_.push_back(std::make_unique<std::max_align_t[]>(kPiece / sizeof(std::max_align_t)));
      next_ = reinterpret_cast<char*>(pieces_.back().get());
      left_ = kPiece;
    }
    void* taken = next_;
    next_ += size;
    left_ -= size;
    return taken;
  }

  std::vector<std::unique_ptr<std::max_align_t[]>> pieces_, large_;
  char* next_ = nullptr;
  size_t left_ = 0;
};

bool IsUnseen(GumboTag tag) {
  switch (tag) {
    case GUMBO_TAG_HEAD:
    case GUMBO_TAG_SCRIPT:
    case GUMBO_TAG_STYLE:
    case GUMBO_TAG_NOSCRIPT:
    case GUMBO_TAG_TEMPLATE:
    case GUMBO_TAG_IFRAME:
    case GUMBO_TAG_OBJECT:
    case GUMBO_TAG_SVG:
    case GUMBO_TAG_MATH:
    case GUMBO_TAG_CANVAS:
    case GUMBO_TAG_AUDIO:
    case GUMBO_TAG_VIDEO:
    case GUMBO_TAG_SELECT:
    case GUMBO_TAG_TEXTAREA:
    case GUMBO_TAG_BUTTON:
      return true;
    default:
      return false;
  }
}

// Newlines that an element asks for before and after itself.
int LinesAround(GumboTag tag) {
  switch (tag) {
    case GUMBO_TAG_P:
    case GUMBO_TAG_H1:
    case GUMBO_TAG_H2:
    case GUMBO_TAG_H3:
    case GUMBO_TAG_H4:
    case GUMBO_TAG_H5:
    case GUMBO_TAG_H6:
    case GUMBO_TAG_BLOCKQUOTE:
    case GUMBO_TAG_PRE:
    case GUMBO_TAG_UL:
    case GUMBO_TAG_OL:
    case GUMBO_TAG_DL:
    case GUMBO_TAG_TABLE:
    case GUMBO_TAG_HR:
    case GUMBO_TAG_FIGURE:
      return 2;
    case GUMBO_TAG_DIV:
    case GUMBO_TAG_LI:
    case GUMBO_TAG_TR:
    case GUMBO_TAG_DT:
    case GUMBO_TAG_DD:
    case GUMBO_TAG_SECTION:
    case GUMBO_TAG_ARTICLE:
    case GUMBO_TAG_HEADER:
    case GUMBO_TAG_FOOTER:
    case GUMBO_TAG_MAIN:
    case GUMBO_TAG_NAV:
    case GUMBO_TAG_ASIDE:
    case GUMBO_TAG_ADDRESS:
    case GUMBO_TAG_CAPTION:
    case GUMBO_TAG_FIGCAPTION:
    case GUMBO_TAG_FORM:
    case GUMBO_TAG_FIELDSET:
    case GUMBO_TAG_BODY:
    case GUMBO_TAG_DETAILS:
    case GUMBO_TAG_SUMMARY:
    case GUMBO_TAG_OPTION:
    case GUMBO_TAG_CENTER:
      return 1;
    default:
      return 0;
  }
}

// Collects text with the white space that is asked for between its parts.
class Writer {
 public:
  void Lines(int count) { lines_ = std::max(lines_, count); }
  void Break() {  // <br>
    if (text_.empty()) return;
    Flush();
    text_.push_back('\n');
    space_ = false;
  }
  void Collapsed(absl::string_view text) {
    for (const char c : text) {
      if (c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f') {
        space_ = true;
      } else {
        Flush();
        text_.push_back(c);
      }
    }
  }
  void Verbatim(absl::string_view text) {
    if (text.empty()) return;
    Flush();
    absl::StrAppend(&text_, text);
  }
  std::string Finish() && {
    if (!text_.empty() && text_.back() != '\n') text_.push_back('\n');
    return std::move(text_);
  }

 private:
  void Flush() {
    if (!text_.empty()) {
      int have = 0;
      while (have < 2 && static_cast<size_t>(have) < text_.size() && text_[text_.size() - 1 - have] == '\n') ++have;
      if (lines_ > have) {
        text_.append(static_cast<size_t>(lines_ - have), '\n');
      } else if (lines_ == 0 && space_ && have == 0) {
        text_.push_back(' ');
      }
    }
    lines_ = 0;
    space_ = false;
  }

  std::string text_;
  int lines_ = 0;
  bool space_ = false;
};

}  // namespace

absl::StatusOr<std::string> HtmlToText(absl::string_view html) {
  if (html.size() > kMaxHtmlBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("a page of ", html.size(), " bytes; at most ", kMaxHtmlBytes));
  }
  Arena arena;
  GumboOptions options = kGumboDefaultOptions;
  options.allocator = &Arena::Allocate;
  options.deallocator = &Arena::Free;
  options.userdata = &arena;
  options.max_errors = 0;
  const GumboOutput* output = gumbo_parse_with_options(&options, html.data(), html.size());

  struct Visit {
    const GumboNode* node;
    bool preformatted;
    bool leaving;
  };
  Writer writer;
  std::vector<Visit> stack = {{output->root, false, false}};
  while (!stack.empty()) {
    const Visit visit = stack.back();
    stack.pop_back();
    switch (visit.node->type) {
      case GUMBO_NODE_TEXT:
      case GUMBO_NODE_CDATA:
      case GUMBO_NODE_WHITESPACE:
        if (visit.preformatted) {
          writer.Verbatim(visit.node->v.text.text);
        } else {
          writer.Collapsed(visit.node->v.text.text);
        }
        break;
      case GUMBO_NODE_ELEMENT: {
        const GumboElement& element = visit.node->v.element;
        if (IsUnseen(element.tag)) break;
        const int lines = LinesAround(element.tag);
        if (lines > 0) writer.Lines(lines);
        if (visit.leaving) {
          if (element.tag == GUMBO_TAG_TD || element.tag == GUMBO_TAG_TH) writer.Collapsed(" ");
          break;
        }
        if (element.tag == GUMBO_TAG_BR) {
          writer.Break();
          break;
        }
        stack.push_back({visit.node, visit.preformatted, true});
        const bool preformatted = visit.preformatted || element.tag == GUMBO_TAG_PRE;
        for (unsigned i = element.children.length; i-- > 0;) {
          stack.push_back({static_cast<const GumboNode*>(element.children.data[i]), preformatted, false});
        }
        break;
      }
      default:
        break;
    }
  }
  return std::move(writer).Finish();
}

}  // namespace millrace::text
