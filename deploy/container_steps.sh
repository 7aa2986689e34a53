#!/bin/sh
# Takes the steps of the cpu image without a container engine, to see that they work: deploy/container_steps.sh [PORT]
# Copies what the image would be built from, installs it, exports the demo model, serves it, waits for the image's health
# check to pass, decides once, stops the server with SIGTERM. Several minutes and 3 GB in $TMPDIR, removed at the end.
# TORCH_INDEX_URL as for deploy/install.sh.
set -eu

port=${1:-8099}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
server=
finish() {
  if [ -n "$server" ]; then kill -TERM "$server" 2>/dev/null || true; fi
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

mkdir "$work/src" "$work/home"
(cd "$root" && git archive HEAD deploy requirements.lock pyproject.toml README.md LICENSE decision calibration server clients training) |
  tar -x -C "$work/src"
(cd "$work/src" && deploy/install.sh cpu "$work/demur")
PATH=$work/demur/bin:$PATH
export PATH DEMUR_URL="http://127.0.0.1:$port" DEMUR_API_KEYS=container-steps DEMUR_API_KEY=container-steps

cd "$work/home"
demur export-demo-model --plain "$work/models/current"
demur serve --host 127.0.0.1 --port "$port" --model "$work/models/current" --tasks "$root/examples/tasks" &
server=$!
tries=180
until python -c "import sys, demur.clients as c; sys.exit(not c.Client(timeout=4).ready())"; do
  kill -0 "$server" 2>/dev/null || { echo "the server ended before it was ready" >&2; exit 1; }
  tries=$((tries - 1))
  [ "$tries" -gt 0 ] || { echo "the server did not become ready" >&2; exit 1; }
  sleep 1
done
python -c "import demur.clients as c; print(c.Client().decide('a test', question='Is this a test?', options=['yes', 'no']))"

kill -TERM "$server"
status=0
wait "$server" || status=$?
server=
[ "$status" -eq 0 ] || { echo "the server ended with status $status" >&2; exit 1; }
echo "the steps of the cpu image work"
