/*
 * A target's end towards `make check`: feeds it the files of its corpus.
 *
 *	replay_TARGET FILE ...		says which one it is at, in case it breaks
 */
#include "fuzz.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#undef printf
#undef fprintf

int
main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
	{
		int			fd = open(argv[i], O_RDONLY);
		struct stat st;
		uint8	   *data;
		Fuzz		in;

		if (fd < 0 || fstat(fd, &st) != 0)
		{
			perror(argv[i]);
			return 2;
		}
		/* just its size: what reads on is seen */
		data = malloc(st.st_size);
		if (read(fd, data, st.st_size) != st.st_size)
		{
			perror(argv[i]);
			return 2;
		}
		close(fd);
		printf("%s\n", argv[i]);
		fflush(stdout);
		in.data = data;
		in.size = st.st_size;
		fuzz_one(&in);
		fuzz_reset();
		free(data);
	}
	return 0;
}
