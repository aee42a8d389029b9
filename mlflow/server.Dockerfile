# MLflow's server with what a team's needs besides: logins, PostgreSQL, S3. The versions are those of constraints.txt.
FROM python:3.11-slim-bookworm
RUN pip install --no-cache-dir "mlflow[auth]==3.17.2" "fastapi==0.150.0" "boto3==1.43.117" \
    "SQLAlchemy==2.1.9" "psycopg2-binary==2.9.13"
COPY start.sh /srv/start.sh
RUN useradd --system --create-home --home-dir /srv/mlflow mlflow
USER mlflow
WORKDIR /srv/mlflow
ENTRYPOINT ["sh", "/srv/start.sh"]
