// What Python may call. Sizes are int64_t; a null pointer stands for an absent tensor. Nothing here checks its arguments.
#pragma once

#define QUIRE_API extern "C" __attribute__((visibility("default")))
