#include "testing/browser.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <map>
#include <utility>

#include "gtest/gtest.h"

extern char** environ;

namespace millrace::testing {
namespace {

using Json = nlohmann::json;

constexpr int kPatienceMs = 20'000;  // for any one message
constexpr int kAwaitMs = 10'000;

[[noreturn]] void Abandon(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::abort();
}

std::array<int, 2> Pipe() {
  std::array<int, 2> ends;
  if (pipe2(ends.data(), O_CLOEXEC) != 0) Abandon("cannot make a pipe");
  // 3 and 4 are taken in the child.
  for (int& end : ends) {
    const int moved = fcntl(end, F_DUPFD_CLOEXEC, 10);
    close(end);
    end = moved;
  }
  return ends;
}

}  // namespace

Browser::Browser() {
  char pattern[] = "/tmp/millrace-browser-XXXXXX";
  if (mkdtemp(pattern) == nullptr) Abandon("cannot make a temporary folder");
  folder_ = pattern;
  const std::array<int, 2> to = Pipe(), from = Pipe();
  // The sandbox wants rights that neither root nor containers have; what is loaded here is our own.
  const std::vector<std::string> arguments = {"chromium",
                                              "--headless",
                                              "--no-sandbox",
                                              "--disable-gpu",
                                              "--disable-dev-shm-usage",
                                              "--disable-background-networking",
                                              "--no-first-run",
                                              "--remote-debugging-pipe",
                                              "--user-data-dir=" + folder_};
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, to[0], 3);
  posix_spawn_file_actions_adddup2(&files, from[1], 4);
  posix_spawn_file_actions_addopen(&files, STDERR_FILENO, (folder_ + "/log").c_str(), O_WRONLY | O_CREAT, 0600);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);  // so that all its processes can be ended
  const int failed = posix_spawnp(&pid_, argv[0], &files, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  if (failed != 0) Abandon("cannot start chromium; `apt-get install chromium`");
  close(to[0]);
  close(from[1]);
  commands_ = to[1];
  replies_ = from[0];
}

Browser::~Browser() {
  close(commands_);
  close(replies_);
  kill(-pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

Json Browser::ReadMessage() {
  for (;;) {
    if (const size_t end = received_.find('\0'); end != std::string::npos) {
      Json message = Json::parse(received_.substr(0, end));
      received_.erase(0, end + 1);
      return message;
    }
    pollfd readable = {.fd = replies_, .events = POLLIN, .revents = 0};
    char buffer[1 << 16];
    if (poll(&readable, 1, kPatienceMs) != 1) Abandon("chromium does not answer");
    const ssize_t got = read(replies_, buffer, sizeof(buffer));
    if (got <= 0) Abandon("chromium has ended");
    received_.append(buffer, static_cast<size_t>(got));
  }
}

Json Browser::Call(const std::string& session, const std::string& method, Json parameters) {
  const int id = next_id_++;
  Json command = {{"id", id}, {"method", method}, {"params", std::move(parameters)}};
  if (!session.empty()) command["sessionId"] = session;
  const std::string bytes = command.dump() + '\0';
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t wrote = write(commands_, bytes.data() + done, bytes.size() - done);
    if (wrote <= 0) Abandon("chromium has ended");
    done += static_cast<size_t>(wrote);
  }
  for (;;) {
    Json message = ReadMessage();
    if (!message.contains("id")) {
      events_.push_back(std::move(message));
    } else if (message["id"] == id) {
      EXPECT_FALSE(message.contains("error")) << method << ": " << message.dump();
      return message.value("result", Json::object());
    }
  }
}

std::unique_ptr<Browser::Tab> Browser::NewTab(Screen screen) { return std::unique_ptr<Tab>(new Tab(this, screen)); }

Browser::Tab::Tab(Browser* browser, Screen screen) : browser_(browser), screen_(screen) {
  context_ = browser_->Call("", "Target.createBrowserContext", Json::object())["browserContextId"];
  const Json target =
      browser_->Call("", "Target.createTarget", {{"url", "about:blank"}, {"browserContextId", context_}})["targetId"];
  session_ = browser_->Call("", "Target.attachToTarget", {{"targetId", target}, {"flatten", true}})["sessionId"];
  for (const char* domain : {"Page.enable", "Runtime.enable", "Log.enable"}) Call(domain);
  Call("Emulation.setDeviceMetricsOverride", {{"width", screen.width},
                                              {"height", screen.height},
                                              {"deviceScaleFactor", screen.touch ? 2 : 1},
                                              {"mobile", screen.touch}});
  Call("Emulation.setTouchEmulationEnabled", {{"enabled", screen.touch}});
}

Browser::Tab::~Tab() { browser_->Call("", "Target.disposeBrowserContext", {{"browserContextId", context_}}); }

Json Browser::Tab::Call(const std::string& method, Json parameters) {
  return browser_->Call(session_, method, std::move(parameters));
}

void Browser::Tab::AwaitEvent(const std::string& method) {
  std::vector<Json>& events = browser_->events_;
  for (size_t i = 0;; ++i) {
    if (i == events.size()) events.push_back(browser_->ReadMessage());
    if (events[i].value("method", "") != method || events[i].value("sessionId", "") != session_) continue;
    events.erase(events.begin() + static_cast<std::ptrdiff_t>(i));
    return;
  }
}

void Browser::Tab::Load(const std::string& address) {
  Call("Page.navigate", {{"url", address}});
  AwaitEvent("Page.loadEventFired");
}

void Browser::Tab::Reload() {
  Call("Page.reload");
  AwaitEvent("Page.loadEventFired");
}

Json Browser::Tab::Evaluate(const std::string& expression) {
  const Json reply =
      Call("Runtime.evaluate", {{"expression", expression}, {"returnByValue", true}, {"awaitPromise", true}});
  if (reply.contains("exceptionDetails")) {
    ADD_FAILURE() << expression << "\n" << reply["exceptionDetails"].dump(2);
    return nullptr;
  }
  return reply["result"].value("value", Json());
}

void Browser::Tab::Await(const std::string& expression) {
  const Json held = Evaluate("new Promise((resolve) => { const until = performance.now() + " +
                             std::to_string(kAwaitMs) + "; const look = () => { if (" + expression +
                             ") resolve(true); else if (performance.now() > until) resolve(false); "
                             "else setTimeout(look, 5); }; look(); })");
  EXPECT_EQ(held, true) << "waited for " << expression << "\nthe page says:\n"
                        << Evaluate("document.body.innerText").dump();
}

void Browser::Tab::Press(const std::string& key) {
  static const auto* named =
      new std::map<std::string, int>{{"Tab", 9}, {"Enter", 13}, {"Escape", 27}, {"ArrowLeft", 37}, {"ArrowRight", 39}};
  Json event = {{"key", key}};
  if (const auto it = named->find(key); it != named->end()) {
    event["code"] = key;
    event["windowsVirtualKeyCode"] = it->second;
    if (key == "Enter") event["text"] = "\r";
  } else {
    event["text"] = key;
    event["windowsVirtualKeyCode"] = std::toupper(static_cast<unsigned char>(key[0]));
  }
  event["type"] = event.contains("text") ? "keyDown" : "rawKeyDown";
  Call("Input.dispatchKeyEvent", event);
  event.erase("text");
  event["type"] = "keyUp";
  Call("Input.dispatchKeyEvent", event);
}

void Browser::Tab::Type(const std::string& text) { Call("Input.insertText", {{"text", text}}); }

void Browser::Tab::Click(const std::string& selector) {
  const Json middle = Evaluate("(() => { const e = document.querySelector(" + Json(selector).dump() +
                               "); e.scrollIntoView({block: 'nearest', behavior: 'instant'}); "
                               "const r = e.getBoundingClientRect(); "
                               "return {x: r.x + r.width / 2, y: r.y + r.height / 2}; })()");
  if (screen_.touch) {
    Call("Input.dispatchTouchEvent", {{"type", "touchStart"}, {"touchPoints", {middle}}});
    Call("Input.dispatchTouchEvent", {{"type", "touchEnd"}, {"touchPoints", Json::array()}});
    return;
  }
  for (const char* type : {"mousePressed", "mouseReleased"}) {
    Json event = middle;
    event["type"] = type;
    event["button"] = "left";
    event["clickCount"] = 1;
    Call("Input.dispatchMouseEvent", event);
  }
}

nlohmann::json Browser::Tab::PoorContrasts() {
  return Evaluate(R"js((() => {
      const parse = (color) => color.match(/[\d.]+/g).map(Number);
      const light = (color) => {
        const [r, g, b] = parse(color).slice(0, 3).map((c) => c / 255)
            .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const behind = (element) => {
        for (let e = element; e !== null; e = e.parentElement) {
          const color = getComputedStyle(e).backgroundColor;
          const parts = parse(color);
          if (parts.length < 4 || parts[3] > 0) return color;
        }
        return 'rgb(255, 255, 255)';
      };
      const poor = [];
      let seen = 0;
      for (const element of document.body.querySelectorAll('*')) {
        const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim() !== '');
        if (!own || !element.checkVisibility() || element.closest('[aria-disabled=true]') !== null) continue;
        ++seen;
        const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) poor.push(`${element.tagName} "${element.textContent.trim()}" ${ratio.toFixed(2)}`);
      }
      return seen < 10 ? ['too little was seen'] : poor;
    })())js");
}

void Browser::Tab::SetDarkMode(bool dark) {
  Call("Emulation.setEmulatedMedia",
       {{"features", {{{"name", "prefers-color-scheme"}, {"value", dark ? "dark" : "light"}}}}});
}

std::vector<std::string> Browser::Tab::TakeComplaints() {
  Evaluate("0");  // what was sent before its answer has come
  std::vector<std::string> complaints;
  for (const Json& event : browser_->events_) {
    if (event.value("sessionId", "") != session_) continue;
    const std::string method = event.value("method", "");
    const bool error = method == "Log.entryAdded" && event["params"]["entry"]["level"] == "error";
    if (error || method == "Runtime.exceptionThrown") complaints.push_back(event["params"].dump());
  }
  std::erase_if(browser_->events_, [this](const Json& event) { return event.value("sessionId", "") == session_; });
  return complaints;
}

}  // namespace millrace::testing
