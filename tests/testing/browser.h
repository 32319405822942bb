// Drives a headless Chromium through its DevTools protocol over a pipe: loads pages, presses keys, reads what is shown.
//
//   Browser browser;
//   Browser::Tab tab = browser.NewTab(kTelephone);
//   tab.Load("http://127.0.0.1:8080/");
//   tab.Await("document.querySelector('h1').textContent === 'Hello'");
//   tab.Press("1");
//
// Protocol: https://chromedevtools.github.io/devtools-protocol/, messages of JSON that end with a zero byte. What goes
// wrong is a test failure, or ends the test program if nothing that follows could mean anything.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace millrace::testing {

struct Screen {
  int width;  // CSS pixels
  int height;
  bool touch;
};
inline constexpr Screen kDesktop = {1280, 800, false};
inline constexpr Screen kTelephone = {360, 640, true};

class Browser {
 public:
  Browser();
  ~Browser();
  Browser(const Browser&) = delete;
  Browser& operator=(const Browser&) = delete;

  // A window of its own: it shares no storage with others.
  class Tab {
   public:
    ~Tab();
    Tab(const Tab&) = delete;
    Tab& operator=(const Tab&) = delete;

    // Returns once the page has loaded.
    void Load(const std::string& address);
    void Reload();
    // The value of a JavaScript expression; promises are waited for.
    nlohmann::json Evaluate(const std::string& expression);
    // Waits until an expression is true.
    void Await(const std::string& expression);
    // Presses and releases a key by its DOM name: "a", "?", "ArrowLeft", "Enter", "Tab", "Escape".
    void Press(const std::string& key);
    // Types into what has the focus.
    void Type(const std::string& text);
    // Clicks, or taps where the screen is touched, the middle of the element.
    void Click(const std::string& selector);
    void SetDarkMode(bool dark);
    // Contrast by WCAG 2.2, success criterion 1.4.3, of all that is shown with text of its own and is not disabled: those
    // below 4.5.
    nlohmann::json PoorContrasts();
    // What the page complained of since the last call: errors of scripts, refused loads.
    std::vector<std::string> TakeComplaints();

   private:
    friend class Browser;
    Tab(Browser* browser, Screen screen);
    nlohmann::json Call(const std::string& method, nlohmann::json parameters = nlohmann::json::object());
    void AwaitEvent(const std::string& method);

    Browser* const browser_;
    const Screen screen_;
    std::string context_;
    std::string session_;
  };
  std::unique_ptr<Tab> NewTab(Screen screen);

 private:
  nlohmann::json Call(const std::string& session, const std::string& method, nlohmann::json parameters);
  nlohmann::json ReadMessage();

  pid_t pid_ = -1;
  int commands_ = -1;
  int replies_ = -1;
  int next_id_ = 1;
  std::string folder_;
  std::string received_;
  std::vector<nlohmann::json> events_;  // not looked at yet
};

}  // namespace millrace::testing
