// Makes folders of certificates as `--tls` takes them, good ones and bad ones.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/certificates.h"
#include "common/roles.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace {

class TestAuthority {
 public:
  TestAuthority() {
    CertificateRequest request;
    request.common_name = "an authority of a test";
    request.not_before = absl::Now() - absl::Hours(100);
    request.not_after = absl::Now() + absl::Hours(100);
    pair_ = *MakeAuthority(request);
  }

  const KeyPair& pair() const { return pair_; }

  // What a role's certificate has; change what is to be wrong with it.
  static CertificateRequest Request(Role role) {
    CertificateRequest request;
    request.common_name = std::string(RoleName(role));
    request.hosts = {"localhost", "127.0.0.1"};
    request.uris = {absl::StrCat(kRoleUri, RoleName(role))};
    request.not_before = absl::Now() - absl::Hours(2);
    request.not_after = absl::Now() + absl::Hours(1);
    return request;
  }

  KeyPair Issue(const CertificateRequest& request) const {
    const absl::StatusOr<KeyPair> issued = MakeCertificate(request, pair_);
    EXPECT_OK(issued);
    return issued.value_or(KeyPair());
  }

  // Writes the three files, over what is there, and gives the folder.
  std::string Place(const std::string& folder, const CertificateRequest& request) const {
    std::filesystem::create_directories(folder);
    const KeyPair issued = Issue(request);
    Write(folder + "/tls.key", issued.key);
    Write(folder + "/tls.crt", issued.certificate);
    return PlaceAuthority(folder);
  }
  std::string Place(const std::string& folder, Role role) const { return Place(folder, Request(role)); }
  // ca.crt alone.
  std::string PlaceAuthority(const std::string& folder) const {
    std::filesystem::create_directories(folder);
    Write(folder + "/ca.crt", pair_.certificate);
    return folder;
  }

 private:
  static void Write(const std::string& path, const std::string& text) {
    std::ofstream(path + ".new", std::ios::binary) << text;
    std::filesystem::rename(path + ".new", path);
  }
  KeyPair pair_;
};

}  // namespace millrace
