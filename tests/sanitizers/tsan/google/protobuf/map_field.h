// Stands before protobuf's header of this name in a build for ThreadSanitizer, and is that header as Debian's library
// was built with it: under ThreadSanitizer a map has two more members, of which the library knows nothing, and
// reflection on a map ends the program.
#pragma push_macro("__SANITIZE_THREAD__")
#undef __SANITIZE_THREAD__
#include_next <google/protobuf/map_field.h>
#pragma pop_macro("__SANITIZE_THREAD__")
