# cmake -D OUT=contents.cc -D "FILES=web/a.html;web/b.js" -P embed.cmake: defines web::Files() with these files. Pages
# are served without their ending, index.html as /.
set(type_html "text/html; charset=utf-8")
set(type_css "text/css; charset=utf-8")
set(type_js "text/javascript; charset=utf-8")
set(type_svg "image/svg+xml")
set(arrays "")
set(rows "")
foreach(file IN LISTS FILES)
  cmake_path(GET file FILENAME name)
  file(READ ${file} bytes HEX)
  string(REGEX REPLACE "(..)" "'\\\\x\\1'," bytes "${bytes}")
  string(MAKE_C_IDENTIFIER ${name} identifier)
  cmake_path(GET name EXTENSION LAST_ONLY ending)
  string(SUBSTRING ${ending} 1 -1 ending)
  set(path /${name})
  if(ending STREQUAL "html")
    cmake_path(REMOVE_EXTENSION path LAST_ONLY)
  endif()
  if(name STREQUAL "index.html")
    set(path /)
  endif()
  string(APPEND arrays "constexpr char k_${identifier}[] = {${bytes}};\n")
  string(APPEND rows "    {\"${path}\", \"${type_${ending}}\", {k_${identifier}, sizeof(k_${identifier})}},\n")
endforeach()
file(WRITE ${OUT} "#include \"web/files.h\"\n
namespace millrace::web {
namespace {\n
${arrays}
constexpr File kFiles[] = {\n${rows}};\n
}  // namespace\n
absl::Span<const File> Files() { return kFiles; }\n
}  // namespace millrace::web\n")
