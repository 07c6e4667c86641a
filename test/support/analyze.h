/* For cppcheck, which reads none of PostgreSQL's headers: what it must know of them. */
#define PG_VERSION_NUM 150000
#define foreach(c, l) for (c = list_head(l); c; c = lnext(l, c))
#define foreach_ptr(type, c, l) for (type *c = list_head(l); c; c = lnext(l, c))
#define for_each_from(c, l, n) for (c = list_nth_cell(l, n); c; c = lnext(l, c))
#define WARNING 19
#define ERROR 21
#define FATAL 22
#define PANIC 23
#define ereport(level, ...) do { if ((level) >= ERROR) exit(1); } while (0)
#define elog(level, ...) do { if ((level) >= ERROR) exit(1); } while (0)
#define PG_TRY() if (setjmp(here) == 0)
#define PG_CATCH() else
#define PG_FINALLY()
#define PG_END_TRY()
#define PG_RE_THROW() exit(1)
#define INT64CONST(x) x##L
#define UINT64CONST(x) x##UL
