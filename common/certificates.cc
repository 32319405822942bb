#include "common/certificates.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <ctime>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace millrace {
namespace {

template <auto Free>
struct Freeing {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Bio = std::unique_ptr<BIO, Freeing<BIO_free_all>>;
using Certificate = std::unique_ptr<X509, Freeing<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Freeing<EVP_PKEY_free>>;
using Names = std::unique_ptr<GENERAL_NAMES, Freeing<GENERAL_NAMES_free>>;
using Store = std::unique_ptr<X509_STORE, Freeing<X509_STORE_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, Freeing<X509_STORE_CTX_free>>;

void FreeStack(STACK_OF(X509) * stack) { sk_X509_pop_free(stack, X509_free); }

// What the library noted about the last failure.
absl::Status LibraryError(absl::string_view what) {
  const unsigned long code = ERR_peek_last_error();  // NOLINT(google-runtime-int): OpenSSL's type
  const char* const reason = code != 0 ? ERR_reason_error_string(code) : nullptr;
  ERR_clear_error();
  return absl::InternalError(absl::StrCat("cannot ", what, reason != nullptr ? absl::StrCat(": ", reason) : ""));
}

Bio Reading(absl::string_view pem) { return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()))); }

Certificate ReadOne(BIO* bio) { return Certificate(PEM_read_bio_X509(bio, nullptr, nullptr, nullptr)); }

Key ReadKey(absl::string_view pem) {
  // A key under a passphrase is refused, instead of asking for it on the terminal.
  const auto refuse = [](char*, int, int, void*) { return -1; };
  Key key(PEM_read_bio_PrivateKey(Reading(pem).get(), nullptr, refuse, nullptr));
  ERR_clear_error();
  return key;
}

absl::StatusOr<std::string> Written(BIO* bio) {
  char* data = nullptr;
  const auto size = BIO_get_mem_data(bio, &data);
  if (size <= 0) return LibraryError("write PEM");
  return std::string(data, static_cast<size_t>(size));
}

bool IsAddress(const std::string& host) {
  unsigned char bytes[16];
  return inet_pton(AF_INET, host.c_str(), bytes) == 1 || inet_pton(AF_INET6, host.c_str(), bytes) == 1;
}

bool IsDnsName(absl::string_view host) {
  return !host.empty() && host.size() <= 253 && host[0] != '.' && host[0] != '-' &&
         std::all_of(host.begin(), host.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '-' || c == '*' || c == '_';
         });
}

absl::Status AddExtension(X509* certificate, X509* issuer, int kind, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* const extension = X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str());
  if (extension == nullptr) return LibraryError(absl::StrCat("make the extension ", OBJ_nid2sn(kind), "=", value));
  const int added = X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
  return added == 1 ? absl::OkStatus() : LibraryError("add an extension");
}

absl::StatusOr<std::string> AlternativeNames(const CertificateRequest& request) {
  std::string names;
  const auto add = [&names](absl::string_view kind, absl::string_view name) {
    absl::StrAppend(&names, names.empty() ? "" : ",", kind, ":", name);
  };
  for (const std::string& host : request.hosts) {
    if (IsAddress(host)) {
      add("IP", host);
    } else if (IsDnsName(host)) {
      add("DNS", host);
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("'", absl::CHexEscape(host.substr(0, 300)), "' is neither a host's name nor an IP address"));
    }
  }
  for (const std::string& uri : request.uris) {
    if (uri.find(',') != std::string::npos) return absl::InvalidArgumentError(absl::StrCat("the URI '", uri, "'"));
    add("URI", uri);
  }
  return names;
}

// `authority`: null for one that signs itself.
absl::StatusOr<KeyPair> Make(const CertificateRequest& request, const KeyPair* authority) {
  const Key key(EVP_EC_gen("P-256"));
  const Certificate certificate(X509_new());
  if (key == nullptr || certificate == nullptr) return LibraryError("make a key");
  X509* const made = certificate.get();
  Key issuer_key;
  Certificate issuer;
  if (authority != nullptr) {
    issuer_key = ReadKey(authority->key);
    issuer = ReadOne(Reading(authority->certificate).get());
    if (issuer_key == nullptr || issuer == nullptr) return absl::InvalidArgumentError("the authority is no PEM");
  }
  EVP_PKEY* const signing = authority != nullptr ? issuer_key.get() : key.get();
  X509* const signer = authority != nullptr ? issuer.get() : made;

  unsigned char serial[16];
  if (RAND_bytes(serial, sizeof(serial)) != 1) return LibraryError("draw a serial number");
  serial[0] = static_cast<unsigned char>((serial[0] & 0x7f) | 0x40);  // positive, and never shorter
  BIGNUM* const number = BN_bin2bn(serial, sizeof(serial), nullptr);
  const bool numbered = number != nullptr && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(made)) != nullptr;
  BN_free(number);
  X509_NAME* const subject = X509_get_subject_name(made);
  const auto* const name = reinterpret_cast<const unsigned char*>(request.common_name.data());
  if (!numbered || X509_set_version(made, 2) != 1 || X509_set_pubkey(made, key.get()) != 1 ||
      ASN1_TIME_set(X509_getm_notBefore(made), absl::ToTimeT(request.not_before)) == nullptr ||
      ASN1_TIME_set(X509_getm_notAfter(made), absl::ToTimeT(request.not_after)) == nullptr ||
      X509_NAME_add_entry_by_NID(subject, NID_commonName, MBSTRING_UTF8, name,
                                 static_cast<int>(request.common_name.size()), -1, 0) != 1 ||
      X509_set_issuer_name(made, X509_get_subject_name(signer)) != 1) {
    return LibraryError(absl::StrCat("make the certificate of '", request.common_name, "'"));
  }
  MILLRACE_RETURN_IF_ERROR(AddExtension(made, signer, NID_basic_constraints,
                                        authority == nullptr ? "critical,CA:TRUE,pathlen:0" : "critical,CA:FALSE"));
  MILLRACE_RETURN_IF_ERROR(
      AddExtension(made, signer, NID_key_usage,
                   authority == nullptr ? "critical,keyCertSign,cRLSign" : "critical,digitalSignature"));
  if (authority != nullptr) {
    MILLRACE_RETURN_IF_ERROR(AddExtension(made, signer, NID_ext_key_usage, "serverAuth,clientAuth"));
  }
  MILLRACE_RETURN_IF_ERROR(AddExtension(made, signer, NID_subject_key_identifier, "hash"));
  if (authority != nullptr) {
    MILLRACE_RETURN_IF_ERROR(AddExtension(made, signer, NID_authority_key_identifier, "keyid:always"));
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::string names, AlternativeNames(request));
  if (!names.empty()) MILLRACE_RETURN_IF_ERROR(AddExtension(made, signer, NID_subject_alt_name, names));
  if (X509_sign(made, signing, EVP_sha256()) == 0) return LibraryError("sign a certificate");

  KeyPair pair;
  const Bio certificate_pem(BIO_new(BIO_s_mem()));
  const Bio key_pem(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_X509(certificate_pem.get(), made) != 1 ||
      PEM_write_bio_PrivateKey(key_pem.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    return LibraryError("write PEM");
  }
  MILLRACE_ASSIGN_OR_RETURN(pair.certificate, Written(certificate_pem.get()));
  MILLRACE_ASSIGN_OR_RETURN(pair.key, Written(key_pem.get()));
  return pair;
}

absl::Time FromAsn1(const ASN1_TIME* time) {
  std::tm broken_down = {};
  if (ASN1_TIME_to_tm(time, &broken_down) != 1) return absl::InfinitePast();
  return absl::FromTM(broken_down, absl::UTCTimeZone());
}

std::string Text(const ASN1_STRING* text) {
  return {reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)), static_cast<size_t>(ASN1_STRING_length(text))};
}

// "" if it is none.
std::string AddressText(const ASN1_STRING* bytes) {
  char text[INET6_ADDRSTRLEN] = "";
  const int size = ASN1_STRING_length(bytes);
  if (size == 4 || size == 16) {
    inet_ntop(size == 4 ? AF_INET : AF_INET6, ASN1_STRING_get0_data(bytes), text, sizeof(text));
  }
  return text;
}

}  // namespace

absl::StatusOr<KeyPair> MakeAuthority(const CertificateRequest& request) { return Make(request, nullptr); }

absl::StatusOr<KeyPair> MakeCertificate(const CertificateRequest& request, const KeyPair& authority) {
  return Make(request, &authority);
}

absl::StatusOr<CertificateFacts> ReadCertificate(absl::string_view pem) {
  const Certificate certificate = ReadOne(Reading(pem).get());
  ERR_clear_error();
  if (certificate == nullptr) return absl::InvalidArgumentError("holds no certificate in PEM");
  CertificateFacts facts;
  facts.not_before = FromAsn1(X509_get0_notBefore(certificate.get()));
  facts.not_after = FromAsn1(X509_get0_notAfter(certificate.get()));
  const X509_NAME* const subject = X509_get_subject_name(certificate.get());
  if (const int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1); at >= 0) {
    facts.common_name = Text(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
  }
  const Names names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate.get(), NID_subject_alt_name, nullptr, nullptr)));
  for (int i = 0; names != nullptr && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* const name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type == GEN_DNS) facts.hosts.push_back(Text(name->d.dNSName));
    if (name->type == GEN_IPADD) facts.hosts.push_back(AddressText(name->d.iPAddress));
    if (name->type == GEN_URI) facts.uris.push_back(Text(name->d.uniformResourceIdentifier));
  }
  return facts;
}

bool HoldsCertificate(absl::string_view pem) {
  const bool holds = ReadOne(Reading(pem).get()) != nullptr;
  ERR_clear_error();
  return holds;
}

absl::Status CheckKeyPair(const KeyPair& pair, absl::string_view authorities, absl::Time now) {
  const Bio chain_pem = Reading(pair.certificate);
  const Certificate certificate = ReadOne(chain_pem.get());
  const Key key = ReadKey(pair.key);
  if (certificate == nullptr) return absl::InvalidArgumentError("tls.crt holds no certificate in PEM");
  if (key == nullptr) return absl::InvalidArgumentError("tls.key holds no key in PEM, or one under a passphrase");
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    ERR_clear_error();
    return absl::FailedPreconditionError("tls.key is not the key of tls.crt");
  }
  const std::unique_ptr<STACK_OF(X509), Freeing<FreeStack>> chain(sk_X509_new_null());
  while (Certificate next = ReadOne(chain_pem.get())) {
    if (sk_X509_push(chain.get(), next.get()) > 0) (void)next.release();
  }
  const Store store(X509_STORE_new());
  const Bio authorities_pem = Reading(authorities);
  int count = 0;
  while (const Certificate next = ReadOne(authorities_pem.get())) {
    X509_STORE_add_cert(store.get(), next.get());
    ++count;
  }
  ERR_clear_error();
  if (count == 0) return absl::InvalidArgumentError("ca.crt holds no certificate in PEM");
  const StoreContext context(X509_STORE_CTX_new());
  if (X509_STORE_CTX_init(context.get(), store.get(), certificate.get(), chain.get()) != 1) {
    return LibraryError("check a certificate");
  }
  X509_STORE_CTX_set_time(context.get(), 0, absl::ToTimeT(now));
  if (X509_verify_cert(context.get()) == 1) return absl::OkStatus();
  const int error = X509_STORE_CTX_get_error(context.get());
  ERR_clear_error();
  return absl::FailedPreconditionError(absl::StrCat(
      "tls.crt (valid from ", absl::FormatTime(FromAsn1(X509_get0_notBefore(certificate.get())), absl::UTCTimeZone()),
      " to ", absl::FormatTime(FromAsn1(X509_get0_notAfter(certificate.get())), absl::UTCTimeZone()),
      ") does not hold by ca.crt: ", X509_verify_cert_error_string(error)));
}

bool IsOfHost(absl::string_view pem, const std::string& host) {
  const Certificate certificate = ReadOne(Reading(pem).get());
  ERR_clear_error();
  if (certificate == nullptr) return false;
  if (IsAddress(host)) return X509_check_ip_asc(certificate.get(), host.c_str(), 0) == 1;
  return X509_check_host(certificate.get(), host.data(), host.size(), X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS, nullptr) ==
         1;
}

}  // namespace millrace
