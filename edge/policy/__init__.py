"""Policy in Python: the operator's class, what its hooks are given, and checks that are ready-made.

from edge.policy import Policy, SipRequest

class MyPolicy(Policy):
    def sip_request(self, request: SipRequest) -> None: ...
"""

from edge.policy.base import Policy as Policy
from edge.policy.checks import AddressList as AddressList
from edge.policy.checks import DomainList as DomainList
from edge.policy.checks import FloodDetector as FloodDetector
from edge.policy.checks import MethodRates as MethodRates
from edge.policy.checks import ScannerList as ScannerList
from edge.policy.checks import has_identity as has_identity
from edge.policy.checks import is_larger as is_larger
from edge.policy.frames import MsrpFrame as MsrpFrame
from edge.policy.requests import SipRequest as SipRequest
from edge.policy.responses import SipBranch as SipBranch
from edge.policy.responses import SipResponse as SipResponse
from edge.policy.routing import Flow as Flow
from edge.policy.routing import Route as Route
from edge.policy.views import Ended as Ended
from edge.policy.views import NewConnection as NewConnection
from edge.policy.views import Registering as Registering
from edge.policy.views import Upgrading as Upgrading
from edge.policy.views import User as User
