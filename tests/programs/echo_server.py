"""Echo servers of Python's own kinds: echo_server.py threading|forking|asyncio PORT"""

import asyncio
import socketserver
import sys


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)


class Threading(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


class Forking(socketserver.ForkingTCPServer):
    allow_reuse_address = True
    request_queue_size = 128


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve(port):
    server = await asyncio.start_server(echo, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


kind, port = sys.argv[1], int(sys.argv[2])
if kind == "asyncio":
    asyncio.run(serve(port))
else:
    with {"threading": Threading, "forking": Forking}[kind](("127.0.0.1", port), Echo) as server:
        server.serve_forever()
