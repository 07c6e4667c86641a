-- The log's reader and its pages, for tests: see src/log/reader_test.c.
--
--   SELECT test.open(true);              all that is retained; false: from now on
--   BEGIN; SELECT test.begin(); COMMIT;  begins a round; false: nothing new
--   BEGIN; SELECT * FROM test.fetch(10); COMMIT;
--   BEGIN; SELECT * FROM test.state(); COMMIT;
--   BEGIN; SELECT test.resume(); COMMIT; all but the position is forgotten
CREATE SCHEMA test;
CREATE FUNCTION test.open(earliest bool) RETURNS void
	AS 'pg_outbox', 'outbox_test_reader_open' LANGUAGE C;
CREATE FUNCTION test.resume() RETURNS void
	AS 'pg_outbox', 'outbox_test_reader_resume' LANGUAGE C;
CREATE FUNCTION test.begin() RETURNS bool
	AS 'pg_outbox', 'outbox_test_reader_begin' LANGUAGE C;
CREATE FUNCTION test.fetch(max int, OUT id bigint, OUT topic text, OUT payload text,
	OUT damaged bool) RETURNS SETOF record
	AS 'pg_outbox', 'outbox_test_reader_fetch' LANGUAGE C;
CREATE FUNCTION test.state(OUT reading bool, OUT open int, OUT s1 text, OUT s2 text,
	OUT cursor bigint, OUT low bigint, OUT pages bigint) RETURNS record
	AS 'pg_outbox', 'outbox_test_reader_state' LANGUAGE C;
CREATE FUNCTION test.pages(OUT relid oid, OUT lane int, OUT generation bigint, OUT blkno int,
	OUT rows int, OUT first_id bigint, OUT last_id bigint) RETURNS SETOF record
	AS 'pg_outbox', 'outbox_test_pages' LANGUAGE C;

-- A round to its end, with what was read in the order of reading.
CREATE FUNCTION test.round(OUT id bigint, OUT topic text, OUT payload text, OUT damaged bool)
	RETURNS SETOF record LANGUAGE plpgsql AS $$
BEGIN
	IF NOT (test.state()).reading AND NOT test.begin() THEN
		RETURN;
	END IF;
	WHILE (test.state()).reading LOOP
		RETURN QUERY SELECT * FROM test.fetch(1000);
	END LOOP;
END
$$;

-- Pages of a lane whose ids don't lie behind those of the page before.  (A
-- message of several rows may begin on one page and end on the next.)
CREATE VIEW test.disorder AS
	SELECT * FROM (SELECT *, lag(last_id) OVER (PARTITION BY lane ORDER BY generation, blkno) AS before
		FROM test.pages() WHERE lane IS NOT NULL) p
	WHERE first_id < before;
