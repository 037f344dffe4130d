"""The demo room: a year of real flights, scored live on a real cluster, and checked to the bit.

`run_demo` tells the whole story; it uses the other rooms as any application would.
"""

from pipeline.demo.story import DemoOptions, run_demo

__all__ = ["DemoOptions", "run_demo"]
