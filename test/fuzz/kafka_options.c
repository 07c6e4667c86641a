/*
 * The validator of Kafka's wrapper, servers and user mappings: a line of flags (w, s, m:
 * what is altered; u: by a user who is no superuser; a: in a database of SQL_ASCII), then
 * names and values by turns, a line each.
 *
 * What it accepts, the client library must accept too; what only superusers may set, no
 * other user gets through; a secret's value is in no message.
 */
#include "fuzz.h"

#include <librdkafka/rdkafka.h>

#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "nodes/parsenodes.h"
#include "transport/options.h"

#define MAX_OPTIONS	16
#define MARK		"~5ecr3t~"

extern Datum outbox_kafka_validator(PG_FUNCTION_ARGS);

typedef struct Ddl
{
	List	   *list;
	Oid			catalog;
} Ddl;

static void
validate(void *arg)
{
	Ddl		   *ddl = arg;
	LOCAL_FCINFO(fcinfo, 2);

	fcinfo->args[0].value = PointerGetDatum(ddl->list);
	fcinfo->args[1].value = ObjectIdGetDatum(ddl->catalog);
	(void) outbox_kafka_validator(fcinfo);
}

static bool
ends(const char *name, const char *end)
{
	size_t		len = strlen(name);

	return len >= strlen(end) && strcmp(name + len - strlen(end), end) == 0;
}

static bool
is_secret(const char *name)
{
	return ends(name, ".password") || ends(name, ".secret") || ends(name, ".passphrase") ||
		ends(name, "key.pem");
}

/* Reads files, loads code, runs programs or calls URLs; as DESIGN lists them. */
static bool
is_for_superusers(const char *name)
{
	return strcmp(name, "plugin.library.paths") == 0 || strcmp(name, "debug") == 0 ||
		strcmp(name, "interceptors") == 0 || strcmp(name, "ssl.providers") == 0 ||
		strncmp(name, "ssl.engine.", 11) == 0 || strncmp(name, "sasl.kerberos.", 14) == 0 ||
		strstr(name, "keytab") != NULL || ends(name, ".location") || ends(name, ".file") ||
		ends(name, ".url") || strcmp(name, "extra") == 0;
}

static bool
is_owned(const char *name)
{
	static const char *const owned[] = {
		"acks", "retries", "enable.idempotence", "message.timeout.ms", "transactional.id",
		"enable.gapless.guarantee", "queue.buffering.max.messages", "group.id",
		"metadata.broker.list", "request.required.acks", "delivery.timeout.ms", NULL
	};

	for (int i = 0; owned[i]; i++)
		if (strcmp(owned[i], name) == 0)
			return true;
	return ends(name, "_cb");
}

/* The library must take what we took; but it may not be asked to read files. */
static void
ask_library(const char *name, const char *value)
{
	static rd_kafka_conf_t *conf = NULL;
	char		error[512];

	if (is_for_superusers(name) || ends(name, ".pem"))
		return;
	if (conf == NULL)
		conf = rd_kafka_conf_new();
	/* what this build of the library lacks is for its relay to show */
	if (rd_kafka_conf_set(conf, name, value, error, sizeof(error)) != RD_KAFKA_CONF_OK &&
		strstr(error, "not supported in this build") == NULL)
	{
		fprintf(stderr, "\"%s\" = \"%s\": %s\n", name, value, error);
		REQUIRE(!"the library takes what we took");
	}
}

static void
check_accepted(const Ddl *ddl)
{
	bool		mapping = ddl->catalog == UserMappingRelationId;
	bool		brokers = mapping;
	OutboxCoreOptions core;
	OutboxOptionError error;
	ListCell   *lc;

	outbox_core_options_init(&core);
	foreach(lc, ddl->list)
	{
		DefElem    *def = lfirst(lc);
		const char *value = (const char *) def->arg;

		REQUIRE(!is_owned(def->defname));
		REQUIRE(shim_superuser || !is_for_superusers(def->defname));
		REQUIRE(mapping || !is_secret(def->defname));
		if (strcmp(def->defname, "bootstrap.servers") == 0)
			brokers = true;
		/* what the relay will read is read in the same way */
		switch (mapping ? OUTBOX_OPTION_FOREIGN :
				outbox_core_option_take(&core, def->defname, value, &error))
		{
			case OUTBOX_OPTION_BAD:
				REQUIRE(!"the relay can read it");
				break;
			case OUTBOX_OPTION_FOREIGN:
				ask_library(def->defname, value);
				break;
			case OUTBOX_OPTION_TAKEN:
				break;
		}
	}
	REQUIRE(brokers);
}

void
fuzz_one(Fuzz *in)
{
	char	   *flags = fuzz_line(in);
	Ddl			ddl = {NIL, ForeignServerRelationId};
	bool		secret = false;

	if (strchr(flags, 'm') != NULL)
		ddl.catalog = UserMappingRelationId;
	else if (strchr(flags, 'w') != NULL)
		ddl.catalog = ForeignDataWrapperRelationId;
	shim_superuser = strchr(flags, 'u') == NULL;
	shim_encoding = strchr(flags, 'a') != NULL ? PG_SQL_ASCII : PG_UTF8;
	for (int i = 0; in->size > 0 && i < MAX_OPTIONS; i++)
	{
		DefElem    *def = palloc0(sizeof(DefElem));
		char	   *value;

		def->type = T_DefElem;
		def->defname = fuzz_line(in);
		value = fuzz_line(in);
		/* texts of a database in UTF-8 are valid, and names never empty */
		if (def->defname[0] == '\0' || strstr(value, MARK) != NULL ||
			(shim_encoding == PG_UTF8 &&
			 (!pg_verify_mbstr(PG_UTF8, value, strlen(value), true) ||
			  !pg_verify_mbstr(PG_UTF8, def->defname, strlen(def->defname), true))))
			return;
		if (is_secret(def->defname) || strcmp(def->defname, "extra") == 0)
		{
			value = psprintf("%s" MARK, value);
			secret = true;
		}
		def->arg = (Node *) value;
		ddl.list = lappend(ddl.list, def);
	}

	if (fuzz_raises(validate, &ddl))
		REQUIRE(fuzz_raised.text[0] != '\0' && fuzz_raised.hides_statement &&
				fuzz_raised.sqlerrcode != 0);
	else if (ddl.catalog != ForeignDataWrapperRelationId)
		check_accepted(&ddl);
	if (secret)
		REQUIRE(strstr(fuzz_raised.text, MARK) == NULL);
}
