#include "common/checksum.h"

#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

// FIPS 180-4's examples (NIST, "SHA-256 examples"), and the empty message.
TEST(Sha256, MatchesPublishedVectors) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Sha256Hex(std::string(1000000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, PiecesCountAsOneMessage) {
  const std::string text = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    Sha256 sum;
    sum.Update(text.substr(0, cut)).Update(text.data() + cut, text.size() - cut);
    EXPECT_EQ(sum.HexDigest(), Sha256Hex(text));
  }
}

TEST(Sha256, StartsAnewAfterADigest) {
  Sha256 sum;
  sum.Update("something else").HexDigest();
  Sha256 moved = std::move(sum);
  EXPECT_EQ(moved.Update("abc").HexDigest(), Sha256Hex("abc"));
}

// The definition, bit by bit.
uint32_t PlainCrc32c(const std::string& bytes) {
  uint32_t crc = ~uint32_t{0};
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0x82F63B78 : 0);
  }
  return ~crc;
}

std::string Pattern(size_t size) {
  std::string bytes(size, '\0');
  uint32_t state = 1;
  for (char& byte : bytes) byte = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
  return bytes;
}

// RFC 3720, B.4, and the check value that catalogues of CRCs give.
TEST(Crc32c, MatchesPublishedVectors) {
  const std::string zeros(32, '\0'), ones(32, '\xff');
  std::string up, down;
  for (int i = 0; i < 32; ++i) {
    up.push_back(static_cast<char>(i));
    down.push_back(static_cast<char>(31 - i));
  }
  EXPECT_EQ(Crc32c(zeros.data(), zeros.size()), 0x8a9136aau);
  EXPECT_EQ(Crc32c(ones.data(), ones.size()), 0x62a8ab43u);
  EXPECT_EQ(Crc32c(up.data(), up.size()), 0x46dd794eu);
  EXPECT_EQ(Crc32c(down.data(), down.size()), 0x113fdb5cu);
  EXPECT_EQ(Crc32c("123456789", 9), 0xe3069283u);
  EXPECT_EQ(Crc32c(nullptr, 0), 0u);
}

TEST(Crc32c, IsTheDefinitionForEverySizeAndAlignment) {
  // Around the sizes at which three streams start and end.
  for (const size_t size : {1, 7, 8, 9, 63, 1023, 1024, 3071, 3072, 3073, 3080, 6143, 6144, 6151, 20000}) {
    const std::string bytes = Pattern(size);
    EXPECT_EQ(Crc32c(bytes.data(), bytes.size()), PlainCrc32c(bytes)) << size;
    for (size_t shift = 1; shift < 8 && shift < size; ++shift) {
      EXPECT_EQ(Crc32c(bytes.data() + shift, size - shift), PlainCrc32c(bytes.substr(shift))) << size << " " << shift;
    }
  }
}

TEST(Crc32c, ContinuesTheSumOfWhatCameBefore) {
  const std::string bytes = Pattern(10000);
  const uint32_t whole = Crc32c(bytes.data(), bytes.size());
  for (const size_t cut : {0, 1, 3071, 3072, 5000, 9999, 10000}) {
    EXPECT_EQ(Crc32c(bytes.data() + cut, bytes.size() - cut, Crc32c(bytes.data(), cut)), whole) << cut;
  }
}

}  // namespace
}  // namespace millrace
