-- The mail service's tables, for both consumers: whom it has written to, in which trace.

CREATE TABLE welcome_emails (
	user_id bigint NOT NULL,
	traceparent text,
	sent timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE mail_server (
	host text NOT NULL,
	port int NOT NULL
);
