/* The themes of the suite, each a file. */
#include "common.h"

extern const struct test_case stream_cases[], ends_cases[], select_cases[], events_cases[], async_cases[], options_cases[], overlapped_cases[],
    extensions_cases[], threads_cases[], accept_cases[], urgent_cases[], library_cases[], skip_cases[], odd_cases[];

const struct test_case *const themes[] = {stream_cases,  ends_cases,       select_cases,     events_cases,  async_cases,
                                          options_cases, overlapped_cases, extensions_cases, threads_cases, accept_cases,
                                          urgent_cases,  library_cases,    skip_cases,       odd_cases,    NULL};
