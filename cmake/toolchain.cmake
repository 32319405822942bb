# Flags that the defined arithmetic depends on (DESIGN section 4), and those that keep the inner loop fast.
#
# x86-64-v3 is the baseline on every machine; kernels/ alone compiles further targets and picks one at run time.
# -ffp-contract=off: GCC fuses even separate multiply and add intrinsics; only written fused multiply-adds may fuse.
add_compile_options(-march=x86-64-v3 -ffp-contract=off -fno-fast-math -Wall -Wextra -Wno-unused-parameter
                    -Wno-missing-field-initializers)
# Highway takes x86-64-v3 for SSE4 unless told that the baseline has no PCLMUL/AES; see kernels/.
add_compile_definitions(HWY_DISABLE_PCLMUL_AES=1 EIGEN_MPL2_ONLY=1 EIGEN_DONT_PARALLELIZE=1)
if(MILLRACE_WERROR)
  add_compile_options(-Werror)
endif()
if(MILLRACE_SANITIZE)
  add_compile_options(-fsanitize=${MILLRACE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all -g1)
  add_link_options(-fsanitize=${MILLRACE_SANITIZE})
  if(MILLRACE_SANITIZE MATCHES "thread")
    include_directories(BEFORE SYSTEM ${PROJECT_SOURCE_DIR}/tests/sanitizers/tsan)
  endif()
endif()
find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()
find_program(MOLD mold)
if(MOLD)
  add_link_options(-fuse-ld=mold)
endif()
