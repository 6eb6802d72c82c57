#!/bin/sh
# Two databases on one PostgreSQL, each with an owner that sees no other: `dagster` and `mlflow`.
# The postgres image runs this once, for an empty data directory. Elsewhere run it as a superuser of the server, with PGHOST
# and its like for psql:
#   MOGE_DAGSTER_DB_PASSWORD=... MOGE_MLFLOW_DB_PASSWORD=... ./create-databases.sh
set -eu
: "${MOGE_DAGSTER_DB_PASSWORD:?must hold the password of the role dagster}"
: "${MOGE_MLFLOW_DB_PASSWORD:?must hold the password of the role mlflow}"
export MOGE_DAGSTER_DB_PASSWORD MOGE_MLFLOW_DB_PASSWORD

# psql reads the passwords from the environment: on its command line every user of the machine could read them.
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname "${POSTGRES_DB:-postgres}" <<'SQL'
\getenv dagster_password MOGE_DAGSTER_DB_PASSWORD
\getenv mlflow_password MOGE_MLFLOW_DB_PASSWORD
CREATE ROLE dagster LOGIN PASSWORD :'dagster_password';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE dagster OWNER dagster;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE ALL ON DATABASE dagster FROM PUBLIC;
REVOKE ALL ON DATABASE mlflow FROM PUBLIC;
SQL
