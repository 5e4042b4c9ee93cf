// With second.cpp: the umbrella header in two translation units of one program. A function or variable of a header that is
// neither inline nor a template is defined twice then, and the link fails.
#include <quorum/quorum.hpp>

#include <typeinfo>

const std::type_info& error_type_of_second();
const float* infinity_of_second();

int main() {
  const bool same_type = typeid(quorum::Error) == error_type_of_second();
  const bool same_constant = &quorum::kInfinity == infinity_of_second();
  return same_type && same_constant ? 0 : 1;
}
