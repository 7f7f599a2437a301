"""A small client of the API server for the bed itself and for the arrangement and the assertions of tests.

Not the product's transport, on purpose: a test that arranged its world with the code under test would prove less.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx

Document = dict[str, Any]


class ApiError(Exception):
    """The API server refused a request; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


def document(
    api_version: str, kind: str, name: str, namespace: str | None = None, /, **fields: Any
) -> Document:
    """An object with its four coordinates and `fields` beside them (`metadata` in `fields` is added to)."""
    metadata = {"name": name, **({"namespace": namespace} if namespace else {}), **fields.pop("metadata", {})}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}


class Api:
    """Requests to one API server as one user. Safe to use from several threads."""

    def __init__(self, url: str, ca_file: Path, token: str) -> None:
        self._resources: dict[str, dict[str, tuple[str, bool]]] = {}
        self._http = httpx.Client(
            base_url=url,
            verify=ssl.create_default_context(cafile=str(ca_file)),
            headers={"Authorization": f"Bearer {token}"},
            timeout=30.0,
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def ready(self) -> bool:
        """Whether `/readyz` says so."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        token: str | None = None,
        **query: str,
    ) -> Document:
        """One request as the admin, or as the owner of `token`; the answer as a document.

        Raises: ApiError for every status of 400 and more.
        """
        headers = {"Content-Type": content_type} | ({"Authorization": f"Bearer {token}"} if token else {})
        content = None if body is None else json.dumps(body)
        answer = self._http.request(method, path, content=content, headers=headers, params=query)
        if answer.status_code >= 400:
            try:
                message = answer.json().get("message", answer.text)
            except ValueError:
                message = answer.text
            raise ApiError(answer.status_code, message)
        result: Document = answer.json()
        return result

    def apply(self, documents: Iterable[Document], *, manager: str = "bed") -> list[Document]:
        """Server-side apply, one after the other, with `force` and strict fields; the live objects.

        Raises: ApiError with the API server's words: an unknown kind, a failed validation.
        """
        return [
            self.request(
                "PATCH",
                self.path(each),
                each,
                content_type="application/apply-patch+yaml",
                fieldManager=manager,
                force="true",
                fieldValidation="Strict",
            )
            for each in documents
        ]

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Document:
        """A live object. Raises: ApiError, with `status` 404 when there is none."""
        return self.request("GET", self.path(document(api_version, kind, name, namespace)))

    def find(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Document | None:
        """A live object, or None."""
        try:
            return self.get(api_version, kind, name, namespace)
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    def list(self, api_version: str, kind: str, namespace: str | None = None, **query: str) -> list[Document]:
        """The live objects of a kind, in one namespace or in all; `labelSelector=...` and the like as keywords."""
        plural, _ = self._resource(api_version, kind)
        inside = f"namespaces/{namespace}/" if namespace else ""
        items: list[Document] = self.request("GET", f"{_root(api_version)}/{inside}{plural}", **query)[
            "items"
        ]
        return items

    def delete(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> None:
        """Delete an object in the background; one that is gone already is fine."""
        try:
            self.request(
                "DELETE",
                self.path(document(api_version, kind, name, namespace)),
                {"propagationPolicy": "Background"},
            )
        except ApiError as error:
            if error.status != 404:
                raise

    def path(self, of: Document) -> str:
        """The URL path of an object; a namespaced one without a namespace stands in `default`."""
        metadata = of["metadata"]
        plural, namespaced = self._resource(of["apiVersion"], of["kind"])
        inside = f"namespaces/{metadata.get('namespace', 'default')}/" if namespaced else ""
        return f"{_root(of['apiVersion'])}/{inside}{plural}/{metadata['name']}"

    def _resource(self, api_version: str, kind: str) -> tuple[str, bool]:
        """(plural, namespaced) of a kind; the group is read again when it does not have the kind yet."""
        if kind not in self._resources.get(api_version, {}):
            found = self.request("GET", _root(api_version))["resources"]
            self._resources[api_version] = {
                each["kind"]: (each["name"], each["namespaced"]) for each in found if "/" not in each["name"]
            }
        try:
            return self._resources[api_version][kind]
        except KeyError:
            raise ApiError(404, f"{api_version} has no kind {kind}") from None


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
