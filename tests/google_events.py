"""Events of Google Cloud in both of their spellings, from the conformance tests of functions-framework.

https://github.com/GoogleCloudPlatform/functions-framework-conformance, events/generate/data.
"""

from typing import Any

ID, TIME = "aaaaaa-1111-bbbb-2222-cccccccccccc", "2020-09-29T11:32:00.000Z"
OBJECT = {
    "bucket": "some-bucket",
    "contentType": "text/plain",
    "crc32c": "rTVTeQ==",
    "generation": "1587627537231057",
    "id": "some-bucket/folder/Test.cs/1587627537231057",
    "kind": "storage#object",
    "name": "folder/Test.cs",
    "size": "352",
    "timeCreated": "2020-04-23T07:38:57.230Z",
}
USER = {
    "email": "test@nowhere.com",
    "metadata": {"createdAt": "2020-05-26T10:42:27Z"},
    "providerData": [{"email": "test@nowhere.com", "providerId": "password"}],
    "uid": "UUpby3s4spZre6kHsgVSPetzQ8l2",
}
MESSAGE = {
    "@type": "type.googleapis.com/google.pubsub.v1.PubsubMessage",
    "attributes": {"attr1": "attr1-value"},
    "data": "dGVzdCBtZXNzYWdlIDM=",
}
CHANGE = {"data": None, "delta": {"grandchild": "other"}}


def cloud_event(kind: str, source: str, data: Any, **more: str) -> dict[str, Any]:
    told = {"specversion": "1.0", "type": kind, "source": source, "id": ID, "time": TIME}
    return {**told, "datacontenttype": "application/json", **more, "data": data}


def background(kind: str, resource: Any, data: Any) -> dict[str, Any]:
    told = {"eventId": ID, "timestamp": TIME, "eventType": kind, "resource": resource}
    # The conformance tests have both ways to write one.
    return {"context": told, "data": data} if isinstance(resource, dict) else {**told, "data": data}


# By name: the event as it was before there were CloudEvents, and as one.
EVENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "storage": (
        background(
            "google.storage.object.finalize",
            {
                "service": "storage.googleapis.com",
                "name": "projects/_/buckets/some-bucket/objects/folder/Test.cs",
                "type": "storage#object",
            },
            OBJECT,
        ),
        cloud_event(
            "google.cloud.storage.object.v1.finalized",
            "//storage.googleapis.com/projects/_/buckets/some-bucket",
            OBJECT,
            subject="objects/folder/Test.cs",
        ),
    ),
    "firebase-auth": (
        background(
            "providers/firebase.auth/eventTypes/user.create", "projects/my-project-id", USER
        ),
        cloud_event(
            "google.firebase.auth.user.v1.created",
            "//firebaseauth.googleapis.com/projects/my-project-id",
            {**USER, "metadata": {"createTime": "2020-05-26T10:42:27Z"}},
            subject=f"users/{USER['uid']}",
        ),
    ),
    "firebase-db": (
        {
            **background(
                "providers/google.firebase.database/eventTypes/ref.write",
                "projects/_/instances/my-project-id/refs/gcf-test/xyz",
                CHANGE,
            ),
            "domain": "firebaseio.com",
            "params": {"child": "xyz"},
        },
        cloud_event(
            "google.firebase.database.ref.v1.written",
            "//firebasedatabase.googleapis.com/projects/_/locations/us-central1/instances/my-project-id",
            CHANGE,
            subject="refs/gcf-test/xyz",
        ),
    ),
    "pubsub": (
        background(
            "google.pubsub.topic.publish",
            {
                "service": "pubsub.googleapis.com",
                "name": "projects/sample-project/topics/gcf-test",
                "type": "type.googleapis.com/google.pubsub.v1.PubsubMessage",
            },
            MESSAGE,
        ),
        cloud_event(
            "google.cloud.pubsub.topic.v1.messagePublished",
            "//pubsub.googleapis.com/projects/sample-project/topics/gcf-test",
            {"message": {**MESSAGE, "messageId": ID, "publishTime": TIME}},
        ),
    ),
}
