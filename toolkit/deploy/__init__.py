"""Everything that changes on a device: files pushed or pulled, runtimes provisioned, releases installed, activated,
removed; and the kit, from which another engine does the same. The package never measures.
"""

from typing import TYPE_CHECKING

from toolkit import lazily

if TYPE_CHECKING:
    from toolkit.deploy.install import (
        PLAIN as PLAIN,
        Delivery as Delivery,
        Prepared as Prepared,
        Release as Release,
        check_here as check_here,
        deploy as deploy,
        prepare as prepare,
    )
    from toolkit.deploy.runtime import Runtime as Runtime

__getattr__ = lazily(__name__, install="PLAIN Delivery Prepared Release check_here deploy prepare", runtime="Runtime")
