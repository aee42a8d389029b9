"""Whether Prefect's server is there, asked before a program relies on it: Prefect itself answers with a traceback."""

import httpx


def check_server(*, needed: bool) -> None:
    """ValueError says why the server that PREFECT_API_URL names can't be used. Where none is named that is one only if `needed`."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url and needed:
        raise ValueError("PREFECT_API_URL is not set: it names Prefect's server, as http://127.0.0.1:4200/api")
    if not url:
        return
    try:
        with get_client(sync_client=True) as client:
            client.api_version()
    except httpx.HTTPStatusError as e:
        hint = ": set PREFECT_API_AUTH_STRING=user:password" if e.response.status_code == 401 else ""
        raise ValueError(f"PREFECT_API_URL={url}: the server answers {e.response.status_code}{hint}") from None
    except (httpx.HTTPError, ValueError) as e:  # ValueError: its answer is no JSON
        raise ValueError(f"PREFECT_API_URL={url}: no server answers there ({e}): `prefect server start` starts one") from None
