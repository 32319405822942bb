#include "text/byte_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace millrace::text {
namespace {

constexpr size_t kPackedBytes = 256 << 10;

class PlainStream final : public ByteStream {
 public:
  PlainStream(std::string path, int file) : path_(std::move(path)), file_(file) {}
  ~PlainStream() override { close(file_); }
  PlainStream(const PlainStream&) = delete;
  PlainStream& operator=(const PlainStream&) = delete;

  absl::StatusOr<size_t> Read(char* out, size_t size) override {
    for (;;) {
      const ssize_t count = read(file_, out, size);
      if (count >= 0) return static_cast<size_t>(count);
      if (errno != EINTR) return absl::ErrnoToStatus(errno, absl::StrCat("reading ", path_));
    }
  }

 private:
  const std::string path_;
  const int file_;
};

// What both unpackers share: packed bytes, and the bound on what may come of them.
class Unpacker : public ByteStream {
 public:
  Unpacker(std::string path, std::unique_ptr<ByteStream> packed) : path_(std::move(path)), packed_(std::move(packed)) {}

 protected:
  // False at the end of the file. Requires that the buffer is used up.
  absl::StatusOr<bool> Refill() {
    MILLRACE_ASSIGN_OR_RETURN(end_, packed_->Read(buffer_.data(), buffer_.size()));
    begin_ = 0;
    packed_bytes_ += end_;
    return end_ > 0;
  }
  absl::Status Count(size_t unpacked) {
    unpacked_bytes_ += unpacked;
    if (unpacked_bytes_ > kFreeBytes && unpacked_bytes_ / kMaxExpansion > packed_bytes_) {
      return absl::ResourceExhaustedError(absl::StrCat(path_, ": ", packed_bytes_, " packed bytes unpack to more than ",
                                                       unpacked_bytes_, ": taken for a decompression bomb"));
    }
    return absl::OkStatus();
  }
  absl::Status Damaged(absl::string_view what) const {
    return absl::DataLossError(absl::StrCat(path_, ": ", what, " before packed byte ", packed_bytes_));
  }

  const std::string path_;
  std::vector<char> buffer_ = std::vector<char>(kPackedBytes);
  size_t begin_ = 0;
  size_t end_ = 0;

 private:
  const std::unique_ptr<ByteStream> packed_;
  uint64_t packed_bytes_ = 0;
  uint64_t unpacked_bytes_ = 0;
};

class GzipStream final : public Unpacker {
 public:
  using Unpacker::Unpacker;
  ~GzipStream() override {
    if (open_) inflateEnd(&zlib_);
  }

  absl::StatusOr<size_t> Read(char* out, size_t size) override {
    size = std::min<size_t>(size, 1 << 30);
    for (;;) {
      // A full output may have left more inside: ask for it before reading on.
      if (begin_ == end_ && !full_) {
        MILLRACE_ASSIGN_OR_RETURN(const bool more, Refill());
        if (!more) {
          if (inside_) return Damaged("gzip data ends early");
          if (!open_) return Damaged("empty, not gzip data");
          return 0;
        }
      }
      if (!open_) {
        if (inflateInit2(&zlib_, 15 + 16) != Z_OK) return absl::ResourceExhaustedError("zlib: out of memory");
        open_ = true;
      } else if (!inside_) {
        inflateReset(&zlib_);  // the next member
      }
      inside_ = true;
      zlib_.next_in = reinterpret_cast<Bytef*>(buffer_.data() + begin_);
      zlib_.avail_in = static_cast<uInt>(end_ - begin_);
      zlib_.next_out = reinterpret_cast<Bytef*>(out);
      zlib_.avail_out = static_cast<uInt>(size);
      const int result = inflate(&zlib_, Z_NO_FLUSH);
      begin_ = end_ - zlib_.avail_in;
      if (result == Z_STREAM_END) {
        inside_ = false;
      } else if (result != Z_OK && result != Z_BUF_ERROR) {
        return Damaged(absl::StrCat("damaged gzip data (", zlib_.msg == nullptr ? "?" : zlib_.msg, ")"));
      }
      const size_t count = size - zlib_.avail_out;
      full_ = inside_ && count == size;
      MILLRACE_RETURN_IF_ERROR(Count(count));
      if (count > 0) return count;
    }
  }

 private:
  z_stream zlib_ = {};
  bool open_ = false;
  bool inside_ = false;  // a member has begun and not ended
  bool full_ = false;
};

class ZstdStream final : public Unpacker {
 public:
  using Unpacker::Unpacker;

  absl::StatusOr<size_t> Read(char* out, size_t size) override {
    if (zstd_ == nullptr) {
      zstd_.reset(ZSTD_createDCtx());
      if (zstd_ == nullptr) return absl::ResourceExhaustedError("zstd: out of memory");
      ZSTD_DCtx_setParameter(zstd_.get(), ZSTD_d_windowLogMax, 27);
    }
    for (;;) {
      if (begin_ == end_ && !full_) {  // as above
        MILLRACE_ASSIGN_OR_RETURN(const bool more, Refill());
        if (!more) {
          if (inside_) return Damaged("zstd data ends early");
          if (!any_) return Damaged("empty, not zstd data");
          return 0;
        }
        any_ = true;
      }
      ZSTD_inBuffer in = {buffer_.data(), end_, begin_};
      ZSTD_outBuffer target = {out, size, 0};
      const size_t result = ZSTD_decompressStream(zstd_.get(), &target, &in);
      if (ZSTD_isError(result)) return Damaged(absl::StrCat("damaged zstd data (", ZSTD_getErrorName(result), ")"));
      begin_ = in.pos;
      inside_ = result != 0;
      full_ = inside_ && target.pos == size;
      MILLRACE_RETURN_IF_ERROR(Count(target.pos));
      if (target.pos > 0) return target.pos;
    }
  }

 private:
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  std::unique_ptr<ZSTD_DCtx, Free> zstd_;
  bool inside_ = false;  // a frame has begun and not ended
  bool full_ = false;
  bool any_ = false;
};

}  // namespace

Packing PackingOf(const std::string& path) {
  if (absl::EndsWithIgnoreCase(path, ".gz")) return Packing::kGzip;
  if (absl::EndsWithIgnoreCase(path, ".zst")) return Packing::kZstd;
  return Packing::kPlain;
}

absl::StatusOr<std::unique_ptr<ByteStream>> OpenPackedStream(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe must not make us wait
  if (file < 0) return absl::ErrnoToStatus(errno, absl::StrCat("opening ", path));
  auto plain = std::make_unique<PlainStream>(path, file);
  struct stat about = {};
  if (fstat(file, &about) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("opening ", path));
  if (!S_ISREG(about.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  return plain;
}

absl::StatusOr<std::unique_ptr<ByteStream>> OpenByteStream(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<ByteStream> packed, OpenPackedStream(path));
  switch (PackingOf(path)) {
    case Packing::kGzip:
      return std::make_unique<GzipStream>(path, std::move(packed));
    case Packing::kZstd:
      return std::make_unique<ZstdStream>(path, std::move(packed));
    case Packing::kPlain:
      break;
  }
  return packed;
}

}  // namespace millrace::text
