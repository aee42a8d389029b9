#!/bin/sh
# MLflow takes the place of its logins from a file alone, so the file is written from the environment; then the server starts.
set -eu
umask 077
export MLFLOW_AUTH_CONFIG_PATH="${TMPDIR:-/tmp}/basic_auth.ini"
cat > "$MLFLOW_AUTH_CONFIG_PATH" <<END
[mlflow]
database_uri = $AUTH_DATABASE_URI
default_permission = EDIT
END
unset AUTH_DATABASE_URI
exec "$@"
