"""The policy node: websocket server and client, ROS 2 node, robot loop, live page."""
