#include <quorum/quorum.hpp>
#include <typeinfo>

const std::type_info& error_type_of_second() { return typeid(quorum::Error); }
const float* infinity_of_second() { return &quorum::kInfinity; }
