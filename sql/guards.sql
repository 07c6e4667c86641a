-- What a statement may do to the log: nothing that would change how it reads.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_outbox;
CREATE TABLE mine (LIKE outbox.segment_1);
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
SELECT outbox.publish_batch('guards', ARRAY['one', 'two']);

-- how a segment is made, whatever the database's defaults say
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
CREATE ACCESS METHOD other_heap TYPE TABLE HANDLER heap_tableam_handler;
SET default_table_access_method = other_heap;
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE outbox_test_space LOCATION '';
SET default_tablespace = outbox_test_space;
SELECT outbox.create_segments(9);
SELECT outbox.create_segments(3);
RESET default_table_access_method;
RESET default_tablespace;
DROP TABLESPACE outbox_test_space;
DROP ACCESS METHOD other_heap;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM PUBLIC;
SELECT c.relname, a.amname, c.relkind, c.relpersistence, c.relacl, c.reltablespace, c.reltoastrelid,
	   c.relhasindex, c.relhasrules, c.reloptions, c.relowner = e.extowner AS owned,
	   d.deptype AS member,
	   (SELECT string_agg(format('%s %s', tgname, tgenabled), ', ' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = c.oid) AS triggers,
	   (SELECT string_agg(DISTINCT attstorage::text, '') FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0) AS storage
FROM pg_class c JOIN pg_am a ON a.oid = c.relam
	JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_extension'::regclass
	JOIN pg_extension e ON e.oid = d.refobjid
WHERE c.oid IN ('outbox.segment_1'::regclass, 'outbox.segment_9'::regclass) ORDER BY 1 \gx
SELECT count(*) AS columns_that_differ FROM pg_attribute a
	JOIN pg_attribute b ON b.attrelid = 'outbox.segment_9'::regclass AND b.attnum = a.attnum
WHERE a.attrelid = 'outbox.segment_1'::regclass AND a.attnum > 0 AND
	(a.attname, a.atttypid, a.attstorage, a.attcollation) IS DISTINCT FROM (b.attname, b.atttypid, b.attstorage, b.attcollation);

-- rows
INSERT INTO outbox.segment_1 (id) VALUES (1);
UPDATE outbox.segment_1 SET id = 1;
DELETE FROM outbox.segment_1;
MERGE INTO outbox.segment_1 s USING (SELECT 0 AS id) n ON s.id = n.id
	WHEN NOT MATCHED THEN INSERT (id) VALUES (1);
COPY outbox.segment_1 (id) FROM STDIN;
1
\.
TRUNCATE outbox.segment_1;
BEGIN;
SET LOCAL session_replication_role = replica;
INSERT INTO outbox.segment_1 (id) VALUES (1);
UPDATE outbox.segment_1 SET id = 1;
DELETE FROM outbox.segment_1;
COPY outbox.segment_1 (id) FROM STDIN;
1
\.
TRUNCATE outbox.segment_1;
ROLLBACK;
SELECT outbox.refuse_dml();
SELECT outbox.skip_replicated();

-- the table itself
ALTER TABLE outbox.segment_1 ADD COLUMN more int;
ALTER TABLE outbox.segment_1 ALTER COLUMN payload SET STORAGE EXTENDED;
ALTER TABLE outbox.segment_1 SET (fillfactor = 10);
ALTER TABLE outbox.segment_1 DISABLE TRIGGER refuse_rows;
ALTER TABLE outbox.segment_1 SET UNLOGGED;
ALTER TABLE outbox.segment_1 SET TABLESPACE pg_default;
ALTER TABLE outbox.segment_1 OWNER TO CURRENT_USER;
ALTER TABLE outbox.segment_1 ENABLE ROW LEVEL SECURITY;
ALTER TABLE outbox.segment_1 REPLICA IDENTITY FULL;
ALTER TABLE outbox.segment_1 RENAME TO segment_one;
ALTER TABLE outbox.segment_1 RENAME COLUMN id TO number;
ALTER TABLE outbox.segment_1 SET SCHEMA public;
ALTER VIEW outbox.segment_1 RENAME TO segment_one;
ALTER TABLE outbox.segment_1 INHERIT mine;
ALTER TABLE mine INHERIT outbox.segment_1;
CREATE TABLE child () INHERITS (outbox.segment_1);
CREATE TABLE parted (LIKE outbox.segment_1) PARTITION BY RANGE (id);
ALTER TABLE parted ATTACH PARTITION outbox.segment_1 DEFAULT;
SET search_path = outbox, public;
ALTER TABLE segment_1 ADD COLUMN more int;
RESET search_path;
DROP TABLE outbox.segment_1;
DROP TABLE outbox.segment_1 CASCADE;
DROP SCHEMA outbox CASCADE;
ALTER SCHEMA outbox RENAME TO other;
ALTER SCHEMA inbox RENAME TO other;
ALTER EXTENSION pg_outbox DROP TABLE outbox.segment_1;
ALTER EXTENSION pg_outbox DROP SEQUENCE outbox.message_id_seq;

-- what hangs on a table
CREATE INDEX ON outbox.segment_1 (id);
CREATE INDEX CONCURRENTLY ON outbox.segment_1 (id);
CLUSTER outbox.segment_1;
CREATE TRIGGER t BEFORE INSERT ON outbox.segment_1 FOR EACH ROW EXECUTE FUNCTION nothing();
CREATE CONSTRAINT TRIGGER t AFTER INSERT ON mine FROM outbox.segment_1 FOR EACH ROW EXECUTE FUNCTION nothing();
ALTER TRIGGER refuse_rows ON outbox.segment_1 RENAME TO t;
ALTER TRIGGER refuse_rows ON outbox.segment_1 DEPENDS ON EXTENSION plpgsql;
DROP TRIGGER refuse_rows ON outbox.segment_1;
CREATE RULE r AS ON INSERT TO outbox.segment_1 DO INSTEAD NOTHING;
CREATE RULE "_RETURN" AS ON SELECT TO outbox.segment_1 DO INSTEAD SELECT * FROM mine;
CREATE POLICY p ON outbox.segment_1;
CREATE STATISTICS s ON id, xid FROM outbox.segment_1;

-- what would come back from a dump on a table that is not there
GRANT SELECT ON outbox.segment_1 TO PUBLIC;
GRANT SELECT (payload) ON outbox.segment_1 TO PUBLIC;
REVOKE ALL ON outbox.segment_1 FROM CURRENT_USER;
GRANT SELECT ON ALL TABLES IN SCHEMA public, outbox TO PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA outbox FROM PUBLIC;
SECURITY LABEL ON TABLE outbox.segment_1 IS 'secret';
CREATE PUBLICATION part FOR TABLE mine, outbox.segment_1;
SET client_min_messages = error;	-- about wal_level
CREATE PUBLICATION part FOR TABLE mine;
SET client_min_messages = warning;
ALTER PUBLICATION part ADD TABLE outbox.segment_1;
ALTER PUBLICATION part SET TABLE outbox.segment_1;
DROP PUBLICATION part;

-- the sequence
ALTER SEQUENCE outbox.message_id_seq RESTART;
ALTER SEQUENCE outbox.message_id_seq OWNED BY mine.id;
ALTER SEQUENCE outbox.message_id_seq RENAME TO s;
ALTER SEQUENCE outbox.message_id_seq SET SCHEMA public;
ALTER TABLE outbox.message_id_seq SET UNLOGGED;
DROP SEQUENCE outbox.message_id_seq;

-- the error a program sees, and the hint a person sees
CREATE PROCEDURE ask(statement text) LANGUAGE plpgsql AS $$
DECLARE
	hint text;
BEGIN
	EXECUTE statement;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	RAISE WARNING '% %', SQLSTATE, hint;
END $$;
CALL ask('ALTER TABLE outbox.segment_1 ADD COLUMN more int');
CALL ask('DELETE FROM outbox.segment_1');
CALL ask('ALTER SEQUENCE outbox.message_id_seq RESTART');
CALL ask('ALTER EXTENSION pg_outbox DROP TABLE outbox.segment_1');
CALL ask('GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO PUBLIC');
CALL ask('TRUNCATE outbox.position_log');

-- innocent
COMMENT ON TABLE outbox.segment_1 IS 'a segment';
COMMENT ON TABLE outbox.segment_1 IS NULL;
BEGIN;
LOCK TABLE outbox.segment_1, outbox.segment_2, outbox.segment_3 IN ACCESS EXCLUSIVE MODE;
ROLLBACK;
ANALYZE outbox.segment_1;
VACUUM (FREEZE, TRUNCATE) outbox.segment_1;
REINDEX TABLE outbox.segment_1;
REINDEX SCHEMA outbox;
REINDEX SCHEMA CONCURRENTLY outbox;
SET client_min_messages = error;	-- that system catalogs are left out
CLUSTER;
RESET client_min_messages;
ALTER TABLE IF EXISTS outbox.segment_0 ADD COLUMN more int;
ALTER TABLE outbox.segment_0 ADD COLUMN more int;
ALTER TABLE segment_1 ADD COLUMN more int;
CREATE TABLE segment_1 (id int PRIMARY KEY);
ALTER TABLE segment_1 ADD COLUMN more int;
CREATE INDEX ON segment_1 (more);
DROP TABLE segment_1;
CREATE SEQUENCE message_id_seq;
ALTER SEQUENCE message_id_seq RESTART;
DROP SEQUENCE message_id_seq;
SET client_min_messages = warning;

-- VACUUM FULL leaves segments out, and only them
CREATE FUNCTION files(OUT segments text, OUT others text) LANGUAGE sql AS $$
	SELECT string_agg(relfilenode::text, ' ' ORDER BY oid) FILTER (WHERE relname ~ '^segment_'),
		   string_agg(relfilenode::text, ' ' ORDER BY oid) FILTER (WHERE relname !~ '^segment_')
	FROM pg_class WHERE relkind = 'r' AND (relnamespace = 'outbox'::regnamespace OR relname = 'mine')
		AND relname NOT IN ('position_log')
$$;
SELECT * FROM files() \gset before_
SET client_min_messages = notice;
VACUUM FULL outbox.segment_1;
VACUUM (FULL, ANALYZE) mine, outbox.segment_1, outbox.segment_2;
SELECT segments = :'before_segments' AS segments_kept FROM files();
SELECT * FROM files() \gset before_
SET client_min_messages = warning;
VACUUM FULL;
SELECT segments = :'before_segments' AS segments_kept, others <> :'before_others' AS others_rewritten FROM files();
VACUUM (FULL false) outbox.segment_1;
VACUUM FULL no_such_table;
VACUUM FULL outbox.segment_1 (id);
BEGIN;
VACUUM FULL mine;
ROLLBACK;

-- the log is as it was
SELECT id - min(id) OVER () AS n, topic, convert_from(payload, 'UTF8') AS payload
FROM outbox.message WHERE topic = 'guards' ORDER BY id;

-- owners come and go
CREATE ROLE outbox_test_owner SUPERUSER;
CREATE ROLE outbox_test_heir SUPERUSER;
DROP TABLE mine, parted;
DROP EXTENSION pg_outbox;
SET ROLE outbox_test_owner;
CREATE EXTENSION pg_outbox;
RESET ROLE;
SELECT outbox.create_segments(9);
REASSIGN OWNED BY outbox_test_owner TO outbox_test_heir;
SELECT outbox.create_segments(10);
SELECT extowner::regrole FROM pg_extension WHERE extname = 'pg_outbox';
SELECT relowner::regrole, count(*) FROM pg_class WHERE relname ~ '^segment_' GROUP BY 1;
SELECT outbox.publish('guards', 'after the change of owner') > 0 AS ok;
DROP OWNED BY outbox_test_heir CASCADE;
SELECT outbox.publish('guards', 'x');
SELECT extowner::regrole FROM pg_extension WHERE extname = 'pg_outbox';
DROP ROLE outbox_test_owner, outbox_test_heir;

-- a schema of that name that is not ours
CREATE SCHEMA outbox;
CREATE TABLE outbox.segment_1 (id int);
CREATE SEQUENCE outbox.message_id_seq;
ALTER TABLE outbox.segment_1 ADD COLUMN more int;
CREATE INDEX ON outbox.segment_1 (id);
ALTER SEQUENCE outbox.message_id_seq RESTART;
GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO PUBLIC;
VACUUM FULL outbox.segment_1;
ALTER SCHEMA outbox RENAME TO theirs;
SET client_min_messages = error;
DROP SCHEMA theirs CASCADE;
CREATE EXTENSION pg_outbox;
