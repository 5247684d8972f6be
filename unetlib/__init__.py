"""Learn image segmentation by building a U-Net: the code behind the six notebooks.

Data flows through the modules in this order, and each imports only from those before it:
``config``, ``sealed``, ``pictures``, ``tables``, ``carvana``, ``download``, ``dataset``,
``model``, ``metrics``, ``recipe``, ``runs``, ``learner``, ``training``, ``formats``, ``export``,
``inference``, ``benchmark``, ``submission``, ``plots``, ``demo``; ``python -m unetlib`` offers
them in a terminal.
"""

__version__ = "0.1.0"
