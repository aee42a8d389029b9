#!/bin/sh
# Run once by the image of PostgreSQL, on an empty volume: a database for each of $DATABASES.
set -eu
for name in $DATABASES; do
    createdb --username "$POSTGRES_USER" "$name"
done
