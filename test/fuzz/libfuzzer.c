/* A target's end towards libFuzzer. */
#include "fuzz.h"

extern int	LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	Fuzz		in = {data, size};

	fuzz_one(&in);
	fuzz_reset();
	return 0;
}
