#include "api.h"
#include "pool.h"

QUIRE_API void quire_set_num_threads(int num_threads) { quire::Team::instance().resize(num_threads); }
