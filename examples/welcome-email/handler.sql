-- The consumer inside the database: a handler that sends the e-mail itself.
--
-- Each message is a transaction of its own (batch_size => 1): should a worker die, at most
-- the one e-mail comes twice that the server had taken and the database not yet committed.

CREATE FUNCTION welcome(m inbox.message) RETURNS void LANGUAGE plpython3u AS $$
import json, smtplib
from email.message import EmailMessage

user = json.loads(plpy.execute(plpy.prepare(
    "SELECT inbox.payload_text($1) AS text", ["inbox.message"]), [m])[0]["text"])
traceparent = json.loads(m["headers"]).get("traceparent")
key = "email:welcome:%d" % user["id"]

# one welcome a user, whichever message asks for it
if not plpy.execute(plpy.prepare(
        "SELECT inbox.accept('welcome', $1) AS new", ["text"]), [key])[0]["new"]:
    return
plpy.execute(plpy.prepare(
    "INSERT INTO public.welcome_emails (user_id, traceparent) VALUES ($1, $2)",
    ["bigint", "text"]), [user["id"], traceparent])

mail = EmailMessage()
mail["Message-ID"] = "<%s@shop.example>" % key.replace(":", ".")
mail["From"] = "hello@shop.example"
mail["To"] = user["email"]
mail["Subject"] = "Welcome, %s" % user["name"]
if traceparent:
    mail["traceparent"] = traceparent
mail.set_content("It is good to have you here.\n")
server = plpy.execute("SELECT host, port FROM public.mail_server")[0]
with smtplib.SMTP(server["host"], server["port"], timeout=10) as smtp:
    smtp.send_message(mail)          # raises what the server refuses: tried again later
$$;
