"""The simulator of whole members. It watches the core through a subclass, as planted bugs do."""

from tests.pure import demand_pure_python

demand_pure_python()
