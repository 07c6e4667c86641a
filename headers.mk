# $(call headers,a.h b.h): "yes" if the compiler finds all of these.  How the makefiles
# know which client libraries are there; without a `#`, which versions of make read
# differently within a function.
headers = $(shell $(CC) $(CPPFLAGS) $(1:%=-include %) -E -x c /dev/null >/dev/null 2>&1 && echo yes)
