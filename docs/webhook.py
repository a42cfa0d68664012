"""An example of an automation: each promotion and each refusal is posted to a web address.

    PREFECT_HOME=data/prefect PREFECT_API_URL=http://127.0.0.1:4200/api \\
        python docs/webhook.py https://example.org/hook

It may be run again, with another address too. slm/orchestration/events.py lists the events.
"""

import sys

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import EventTrigger, Posture

NAME = "slm: post promotions and refusals"
BODY = """{
  "text": "{{ event.resource.name }}: {{ event.event }}, {{ event.payload.reason | e }}",
  "version": "{{ event.resource.id }}"
}"""


def main(address: str) -> None:
    """Make the webhook and the automation, or point existing ones at the address."""
    block = Webhook(method="POST", url=address).save("slm-champions", overwrite=True)
    with get_client(sync_client=True) as client:
        for old in client.read_automations_by_name(NAME):
            client.delete_automation(old.id)
    Automation(
        name=NAME,
        trigger=EventTrigger(
            expect={"slm.version.promoted", "slm.version.refused"},
            match={"prefect.resource.id": "slm.model.*"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=block, payload=BODY)],
    ).create()


if __name__ == "__main__":
    main(sys.argv[1])
