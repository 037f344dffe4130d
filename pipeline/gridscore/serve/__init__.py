"""The serve room: everything that reaches Gridscore by HTTP, in one application on one port.

It scores requests by the same code as the stream, and takes events and gives results as the HTTP source does.
"""
