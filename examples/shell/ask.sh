#!/bin/sh
# Ask a node and print the answer as plain text: one message out, one message back (MQTT 5, topic `ask`).
#
#   examples/shell/ask.sh 'Name a colour.'
#   examples/shell/ask.sh '{"prompt": "Name a colour.", "max_tokens": 10}'
#   { echo 'Summarise this log:'; tail -n 20 /var/log/dpkg.log; } | examples/shell/ask.sh -
#
# MQTT_HOST, MQTT_PORT and NODE choose broker and node. Needs mosquitto-clients and python3.
# Exits with 0 after an answer, 1 if the request failed, 27 if nothing came within two minutes.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 PROMPT   (- reads it from standard input)" >&2; exit 2; }
if [ "$1" = - ]; then prompt=$(cat); else prompt=$1; fi

# A reply topic of our own: several of these may run at once.
reply="reply/ask-sh/$(hostname | tr -c 'A-Za-z0-9_.\n-' -)-$$"

final=$(mosquitto_rr -V 5 -q 1 -W 120 -h "${MQTT_HOST:-localhost}" -p "${MQTT_PORT:-1883}" \
  -t "edged/v1/${NODE:-edge}/ask" -e "$reply" -m "$prompt")

printf '%s' "$final" | python3 -c '
import json, sys
final = json.load(sys.stdin)
if final["finish_reason"] == "error":
    sys.exit("{code}: {message}".format(**final["error"]))
print(final["text"])
'
