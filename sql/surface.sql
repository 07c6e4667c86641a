-- What the extension shows to the world: every object says what it is, nobody may
-- more than the matrix of roles says, and the administration's errors.
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS pg_outbox;
RESET client_min_messages;

CREATE TEMP VIEW member AS
	SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS object
	FROM pg_depend d
	JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
	LEFT JOIN pg_class c ON c.oid = d.objid AND d.classid = 'pg_class'::regclass
	LEFT JOIN pg_type t ON t.oid = d.objid AND d.classid = 'pg_type'::regclass
	WHERE e.extname = 'pg_outbox' AND d.deptype = 'e'
	  AND (c.relname IS NULL OR c.relname !~ '^segment_[0-9]+$')
	  -- types of rows, and arrays of them, come with their tables (members since 16)
	  AND (t.oid IS NULL OR (t.typelem = 0 AND NOT EXISTS
		(SELECT FROM pg_class r WHERE r.oid = t.typrelid AND r.relkind <> 'c')));

-- what there is (a new object belongs into README too)
SELECT object FROM member ORDER BY object COLLATE "C";

-- an object without a comment
SELECT object FROM member m WHERE obj_description(objid, classid::regclass::text) IS NULL
	ORDER BY object COLLATE "C";

-- a comment that says too little to be one
SELECT object, obj_description(objid, classid::regclass::text) AS comment FROM member
	WHERE length(obj_description(objid, classid::regclass::text)) < 20
	ORDER BY object COLLATE "C";

-- a function that anybody may call
SELECT p.oid::regprocedure AS function
	FROM pg_proc p JOIN member m ON m.objid = p.oid AND m.classid = 'pg_proc'::regclass,
		aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
	WHERE a.grantee = 0
	ORDER BY p.oid::regprocedure::text COLLATE "C";

-- a function with its owner's rights and the caller's search_path
SELECT p.oid::regprocedure AS function, p.proconfig
	FROM pg_proc p JOIN member m ON m.objid = p.oid AND m.classid = 'pg_proc'::regclass
	WHERE p.prosecdef AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false)
	ORDER BY p.oid::regprocedure::text COLLATE "C";

-- functions that a parallel worker might run: those that only look at their argument
SELECT p.oid::regprocedure AS function
	FROM pg_proc p JOIN member m ON m.objid = p.oid AND m.classid = 'pg_proc'::regclass
	WHERE p.proparallel <> 'u'
	ORDER BY p.oid::regprocedure::text COLLATE "C";

-- the matrix of roles: everything else is the owner's alone
SELECT object,
	string_agg(DISTINCT privilege_type, ', ') FILTER (WHERE grantee = 0) AS public,
	string_agg(DISTINCT privilege_type, ', ') FILTER (WHERE grantee = to_regrole('outbox_publisher')) AS publisher,
	string_agg(DISTINCT privilege_type, ', ') FILTER (WHERE grantee = to_regrole('outbox_admin')) AS admin,
	string_agg(DISTINCT privilege_type, ', ') FILTER (WHERE grantee = to_regrole('inbox_consumer')) AS consumer
FROM member m
LEFT JOIN pg_proc p ON p.oid = m.objid AND m.classid = 'pg_proc'::regclass
LEFT JOIN pg_class c ON c.oid = m.objid AND m.classid = 'pg_class'::regclass
LEFT JOIN pg_namespace n ON n.oid = m.objid AND m.classid = 'pg_namespace'::regclass
LEFT JOIN pg_foreign_data_wrapper w ON w.oid = m.objid AND m.classid = 'pg_foreign_data_wrapper'::regclass,
	aclexplode(coalesce(p.proacl, c.relacl, n.nspacl, w.fdwacl)) a
WHERE a.grantee <> coalesce(p.proowner, c.relowner, n.nspowner, w.fdwowner)
GROUP BY object
ORDER BY object COLLATE "C";

-- roles can't log in and are no members of each other
SELECT rolname, rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls,
	(SELECT count(*) FROM pg_auth_members WHERE member = r.oid) AS memberships
	FROM pg_roles r WHERE rolname IN ('outbox_publisher', 'outbox_admin', 'inbox_consumer')
	ORDER BY rolname;

-- settings: unit, default, bounds and who may change them
SELECT name, unit, boot_val, min_val, max_val, context, short_desc
	FROM pg_settings WHERE name LIKE 'outbox.%' AND name <> 'outbox.fault'
	ORDER BY name COLLATE "C";

-- columns of what is for reading
SELECT attrelid::regclass AS relation, attname, format_type(atttypid, atttypmod) AS type
	FROM pg_attribute
	WHERE attrelid IN ('outbox.message'::regclass, 'outbox.relay_status'::regclass,
		'outbox.dead_letter'::regclass, 'outbox.unrouted'::regclass)
	  AND attnum > 0 AND NOT attisdropped
	ORDER BY attrelid::regclass::text COLLATE "C", attnum;

-- administration
CREATE ROLE regress_outbox_nobody;
CREATE ROLE regress_outbox_admin;
GRANT outbox_admin TO regress_outbox_admin;
CREATE SERVER somebodys FOREIGN DATA WRAPPER outbox_kafka
	OPTIONS ("bootstrap.servers" '127.0.0.1:1', topics 'none', paused 'true');
CREATE FOREIGN DATA WRAPPER regress_other;
CREATE SERVER not_ours FOREIGN DATA WRAPPER regress_other;
\set ON_ERROR_ROLLBACK on
BEGIN;
INSERT INTO outbox.dead_letter
	(server, id, message_id, topic, key, partition, headers, payload, kind, published, error, reason, attempts)
	SELECT s, n, 'id-' || n, 'topic-' || n % 2, 'k', NULL, '[["a", "b"]]', 'x', 't', now(), 'MSG_SIZE_TOO_LARGE', 'too large', 1
	FROM unnest(ARRAY['somebodys', 'gone']) s, generate_series(1, 6) n;

-- as an administrator
SET ROLE regress_outbox_admin;
SELECT server, delivered, dead, last_error FROM outbox.relay_status;
SELECT count(*) FROM outbox.dead_letter;
SELECT messages >= 0 AS ok FROM outbox.unrouted;
SELECT count(*) >= 0 AS ok FROM outbox.message;
SELECT outbox.flush();
SELECT outbox.flush('0') AS nothing_to_wait_for;
SELECT outbox.flush(NULL);
SELECT outbox.flush('-1 second');
SELECT outbox.resume('somebodys');
SELECT option_value FROM pg_foreign_server, pg_options_to_table(srvoptions)
	WHERE srvname = 'somebodys' AND option_name = 'paused';
SELECT outbox.flush('1 millisecond') AS waited_for_in_vain;
SELECT outbox.pause('somebodys');
SELECT outbox.pause('somebodys');
SELECT option_value FROM pg_foreign_server, pg_options_to_table(srvoptions)
	WHERE srvname = 'somebodys' AND option_name = 'paused';
SELECT outbox.pause('nobody');
\echo :LAST_ERROR_SQLSTATE
SELECT outbox.pause('not_ours');
SELECT outbox.pause('some"body; DROP SERVER somebodys');
SELECT outbox.pause(NULL);
SELECT outbox.resume('nobody');
SELECT outbox.resume(NULL);
SELECT outbox.adopt('nobody');
SELECT outbox.adopt(NULL);
SELECT outbox.redrive('nobody');
SELECT outbox.redrive('gone');
SELECT outbox.redrive('not_ours');
SELECT outbox.redrive(NULL);
SELECT outbox.redrive('somebodys', ARRAY[100, NULL]);
SELECT outbox.redrive('somebodys', '{}');
SELECT outbox.redrive('somebodys', topic => 'no such topic');
SELECT outbox.redrive('somebodys', ARRAY[1, 2, 2, 3], 'topic-1');
SELECT outbox.flush();
\echo :LAST_ERROR_SQLSTATE
SELECT topic, key, headers, convert_from(payload, 'UTF8') AS payload, kind, message_id, target
	FROM outbox.message WHERE target IS NOT NULL;
SELECT outbox.discard('nobody');
SELECT outbox.discard(NULL);
SELECT outbox.discard('somebodys', ARRAY[2, 4]);
SELECT outbox.discard('gone', topic => 'topic-0');
SELECT outbox.discard('gone');
SELECT server, id FROM outbox.dead_letter ORDER BY server, id;
-- but not more than that
SELECT outbox.publish('t', 'x');
SELECT * FROM outbox.relay_status_rows() WHERE false;
SELECT count(*) FROM outbox.position_log;
DELETE FROM outbox.dead_letter;
SELECT outbox.set_server_option('somebodys', 'topics', '*');
ALTER SERVER somebodys OPTIONS (SET topics '*');
SELECT outbox.republish('somebodys', 't', 'id', NULL, NULL, NULL, NULL, 't', now());

-- as a publisher
SET ROLE outbox_publisher;
SELECT outbox.publish('t', 'x') > 0 AS ok;
SELECT outbox.publish_batch('t', ARRAY['x', 'y']);
SELECT count(*) FROM outbox.relay_status;
SELECT count(*) FROM outbox.dead_letter;
SELECT count(*) FROM outbox.unrouted;
SELECT count(*) FROM outbox.message;
SELECT outbox.flush();
SELECT outbox.pause('somebodys');
SELECT outbox.resume('somebodys');
SELECT outbox.redrive('somebodys');
SELECT outbox.discard('somebodys');
SELECT outbox.adopt('somebodys');
CREATE SERVER mine FOREIGN DATA WRAPPER outbox_kafka OPTIONS ("bootstrap.servers" 'a');

-- as nobody
SET ROLE regress_outbox_nobody;
SELECT outbox.publish('t', 'x');
SELECT count(*) FROM outbox.relay_status;
SELECT outbox.flush();
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
ROLLBACK;

DROP SERVER not_ours;
DROP FOREIGN DATA WRAPPER regress_other;
DROP SERVER somebodys;
DROP ROLE regress_outbox_nobody;
DROP ROLE regress_outbox_admin;
